"""REST resources: one router per file, in one room per subject."""
