"""What went wrong on the way to the service: counted always, said once."""

from __future__ import annotations

import logging

_log = logging.getLogger("snc")


class Troubles:
    """Errors of one delivery; each kind is logged the first time it occurs."""

    def __init__(self) -> None:
        self.errors = 0
        self.last_error: str | None = None
        self._said: set[str] = set()

    def say(self, kind: str, message: str, *values: object) -> None:
        """Count an error; log it unless its kind was."""
        self.errors += 1
        self.last_error = message % values
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("snc: %s", self.last_error)

    def over(self, kind: str) -> None:
        """Say it again should it come back."""
        self._said.discard(kind)
