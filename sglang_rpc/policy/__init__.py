"""What to keep: one file per method. No CUDA, no sglang."""
