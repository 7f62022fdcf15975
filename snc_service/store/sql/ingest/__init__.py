"""Ingest: writes batches of many runs in one transaction, each batch once."""
