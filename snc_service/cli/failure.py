"""The one way in which a command fails."""


class Failure(Exception):
    """One sentence for stderr that says what to change; the exit status is 1."""
