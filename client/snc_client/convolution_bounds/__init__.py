"""Bounds of a convolution as a linear map: on a torus, and by its absolute values."""
