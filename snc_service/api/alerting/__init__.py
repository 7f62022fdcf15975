"""Routes for incidents and for the routing of alerts."""
