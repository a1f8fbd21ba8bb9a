"""What happens in a scheduler or forward step. The only code that touches SGLang's objects."""
