"""Failures of a delivery: every one is counted, each kind is logged once."""

from __future__ import annotations

import logging

_log = logging.getLogger("snc")


class Failures:
    """Count of the failures of one delivery, and the kinds that are logged already."""

    def __init__(self) -> None:
        self.errors = 0
        self.last_error: str | None = None
        self._logged: set[str] = set()

    def record(self, kind: str, message: str, *values: object) -> None:
        """Count a failure; log it unless its kind was logged before."""
        self.errors += 1
        self.last_error = message % values
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning("snc: %s", self.last_error)

    def resolved(self, kind: str) -> None:
        """Log the next failure of ``kind`` again."""
        self._logged.discard(kind)
