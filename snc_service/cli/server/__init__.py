"""The HTTP server of ``snc serve``."""
