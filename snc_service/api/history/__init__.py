"""Routes for queries of the stored values of a run."""
