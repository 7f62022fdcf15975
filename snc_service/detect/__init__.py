"""Detection: events out of rows."""
