"""Detection: turns the rows of a run into events."""
