"""Measurements. Counts come first: they are the same on every machine."""
