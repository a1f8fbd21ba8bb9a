"""How often the ids that a model generates are not what its tokenizer makes of their text."""
