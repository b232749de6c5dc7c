"""Search: dominance, vectorised evolution, strategies, and the loop that measures."""
