"""Ingest of batches in binary and JSON form."""
