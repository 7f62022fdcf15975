"""Layers of which this process holds a part: the same names and shapes as in the whole model."""

from snc_client.layers.sharded.flat import flat_places, with_flat
from snc_client.layers.sharded.layer import refused, sharded_layer, stand_in

__all__ = ["flat_places", "refused", "sharded_layer", "stand_in", "with_flat"]
