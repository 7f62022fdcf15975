"""REST resources: one router per file."""
