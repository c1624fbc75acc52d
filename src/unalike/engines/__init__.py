"""Engines: ordered maps from tickets to results, and the loop that drives them."""
