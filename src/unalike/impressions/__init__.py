"""Synthetic images that a server distils from its model, and what clients do with them."""
