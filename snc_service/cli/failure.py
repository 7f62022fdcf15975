"""The errors that every command uses."""


class Failure(Exception):
    """One sentence for stderr that states what to change; the exit status is 1."""


class RefusedByService(Failure):
    """The service answered with an error; ``status`` is its HTTP status.

    ``wait_seconds`` is how long it asks to wait before the next try, None if it does not.
    """

    def __init__(self, message: str, status: int, wait_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait_seconds = wait_seconds
