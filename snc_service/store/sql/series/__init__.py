"""Stored values: the tail of recent batches, tiles, and the latest values."""
