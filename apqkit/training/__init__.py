"""Training and evaluation: one loop each, and the recipes that use them."""
