"""Layers of a model: their names, views and linear maps; skipped tensors with the reason."""

from snc_client.layers.conv import grids_of, watch_grids
from snc_client.layers.coverage import Coverage, Layer, Skipped
from snc_client.layers.products.logits import Logits
from snc_client.layers.walk import find_layers

__all__ = ["Coverage", "Layer", "Logits", "Skipped", "find_layers", "grids_of", "watch_grids"]
