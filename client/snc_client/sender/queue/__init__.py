"""Hold rows in memory or on disk until they are sent as batches."""
