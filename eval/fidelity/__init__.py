"""How far a compressed KV cache changes what a model predicts on real text."""
