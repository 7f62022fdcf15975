"""Decide at which steps layers are measured and certified, and how thresholds change."""
