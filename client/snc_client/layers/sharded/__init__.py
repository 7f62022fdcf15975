"""Layers of which this process holds a part: the same names and shapes as in the whole model."""

from snc_client.layers.sharded.layer import refused, sharded_layer, stand_in

__all__ = ["refused", "sharded_layer", "stand_in"]
