"""Measures and holds the layers of which each process has a part, all processes together."""
