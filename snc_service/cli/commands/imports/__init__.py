"""``snc import``: runs that other tools recorded become runs of a service."""
