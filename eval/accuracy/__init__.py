"""What compression costs in accuracy: samples through the OpenAI API, graded, with standard errors."""
