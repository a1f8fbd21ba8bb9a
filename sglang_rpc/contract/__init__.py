"""Does this SGLang, server, model and request fit: targets, assumptions, pins, refusals."""
