"""How much texts repeat themselves, and whether what is kept of them repeats less: entropy of n-grams."""
