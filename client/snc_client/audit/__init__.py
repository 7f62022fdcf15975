"""``snc audit``: sigma, a certified bound and more of every weight in a file, without a model."""

from snc_client.audit.command import main

__all__ = ["main"]
