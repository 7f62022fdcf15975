"""The error that every command uses."""


class Failure(Exception):
    """One sentence for stderr that states what to change; the exit status is 1."""
