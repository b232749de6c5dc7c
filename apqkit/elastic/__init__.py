"""Sliceable layers and the supernet that is made of them."""
