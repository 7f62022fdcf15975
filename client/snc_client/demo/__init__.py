"""``snc demo``: one model, one fault, trained twice: observed and constrained."""

from snc_client.demo.command import main

__all__ = ["main"]
