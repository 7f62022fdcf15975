"""Whose turn it is: one run that makes an incident with every batch delays nobody else's alarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from snc_service.alerts.document import rank
from snc_service.store.types.incidents import DueRun

RECENT_SECONDS: Final = 60.0


class Turns:
    """Which runs and projects one receiver was told of lately. For one thread."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}  # (kind, name) -> when, the newest last

    def next(self, waiting: Sequence[DueRun], now: float) -> DueRun:
        """Return what is told next.

        Runs of which the receiver was told in the last minute come after all others. Before that
        counts the severity, then how long ago something of the project, and of the run, was told.
        """
        for key, at in list(self._told.items()):
            if now - at < RECENT_SECONDS:
                break
            del self._told[key]

        def turn(each: DueRun) -> tuple[bool, int, float, float, float]:
            run, project = (
                self._told.get(key, 0.0) for key in (("run", each.run), ("project", each.project))
            )
            return run > 0, -rank(each.severity), project, run, each.since

        return min(waiting, key=turn)

    def told(self, each: DueRun, now: float) -> None:
        """Note that the receiver was told of a run at ``now``, seconds of a clock above zero."""
        for key in (("run", each.run), ("project", each.project)):
            self._told.pop(key, None)
            self._told[key] = now
