"""Calm rows: those of several runs that raise no event, judged together."""
