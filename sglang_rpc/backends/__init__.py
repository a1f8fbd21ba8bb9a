"""Which implementation compresses: PyTorch or Triton, and its proof at start-up."""
