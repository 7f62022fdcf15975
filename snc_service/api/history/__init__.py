"""Routes that answer queries about the stored values of a run."""
