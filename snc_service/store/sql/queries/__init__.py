"""Queries about a run: history, worst layers, export."""
