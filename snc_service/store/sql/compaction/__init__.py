"""Turn batches of the tail into tiles and rollups, and drop old tiles."""
