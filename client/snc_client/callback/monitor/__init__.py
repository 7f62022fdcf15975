"""Measure and hold the layers of a model at each step, device by device."""
