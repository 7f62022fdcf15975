"""Exchange rows, policies and commands with the service."""
