"""Receive batches: binary and JSON."""
