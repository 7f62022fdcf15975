"""Whose turn it is: one run that makes an incident with every batch delays nobody else's alarm."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from snc_service.alerts.document import rank
from snc_service.store.types.incidents import DueRun

RECENT_SECONDS: Final = 60.0


class Turns:
    """Which runs and projects one receiver was told of lately. For one thread.

    After ``most`` messages of a run in a minute the next one is a digest, of all that waits of the
    run, and the one after it comes a minute later.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._told: dict[tuple[str, str], float] = {}  # (kind, name) -> when, the newest last
        self._of_run: dict[str, deque[float]] = {}  # when the run's last ``most`` messages were
        self._held: dict[str, float] = {}  # until when, by run

    def next(self, waiting: Sequence[DueRun], now: float) -> DueRun | None:
        """Return what is told next, None if all runs that wait are held.

        Runs of which the receiver was told in the last minute come after all others. Before that
        counts the severity, then how long ago something of the project, and of the run, was told.
        """
        for key, at in list(self._told.items()):
            if now - at < RECENT_SECONDS:
                break
            del self._told[key]
            if key[0] == "run":
                self._of_run.pop(key[1], None)
                self._held.pop(key[1], None)

        def turn(each: DueRun) -> tuple[bool, int, float, float, float]:
            run, project = (
                self._told.get(key, 0.0) for key in (("run", each.run), ("project", each.project))
            )
            return run > 0, -rank(each.severity), project, run, each.since

        free = [each for each in waiting if self._held.get(each.run, 0.0) <= now]
        return min(free, key=turn, default=None)

    def told(self, each: DueRun, now: float) -> bool:
        """Note that the receiver is told of a run at ``now``, seconds of a clock above zero.

        Returns whether that is to be a digest.
        """
        last = self._of_run.setdefault(each.run, deque(maxlen=self._most))
        too_many = len(last) == self._most and now - last[0] < RECENT_SECONDS
        last.append(now)
        if too_many:
            self._held[each.run] = now + RECENT_SECONDS
        for key in (("run", each.run), ("project", each.project)):
            self._told.pop(key, None)
            self._told[key] = now
        return too_many
