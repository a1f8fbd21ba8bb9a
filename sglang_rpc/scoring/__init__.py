"""How to score: queries, keys, candidates -> scores -> sorted kept indices. Imports torch only."""
