"""Write batches: many runs in one transaction, each batch once."""
