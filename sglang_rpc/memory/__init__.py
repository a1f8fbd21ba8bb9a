"""How memory moves: the query ring, gather and scatter in the row's own slots. Imports torch only."""
