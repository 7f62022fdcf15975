"""Compaction: turns batches of the tail into tiles and rollups, and drops old tiles."""
