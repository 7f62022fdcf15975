"""Overhead: the callback's cost as a fraction of the time of a training step."""

from __future__ import annotations

import math
import time


class Overhead:
    """Two clocks of the host: from one call of step() to the next, and inside the calls.

    `spent` adds device seconds, which arrive later. The time of a call counts when the interval
    that it begins has ended.
    """

    def __init__(self) -> None:
        self._entered = math.nan
        self._total = self._inside = self._open = 0.0
        self._row_steps, self._row_total = 0, 0.0

    def enter(self) -> None:
        """Note that a call of step() begins."""
        now = time.perf_counter()
        if not math.isnan(self._entered):
            self._total += now - self._entered
            self._inside += self._open
            self._row_steps += 1
            self._row_total += now - self._entered
        self._entered, self._open = now, 0.0

    def inside(self) -> float:
        """Return the seconds since the call of step() began."""
        return time.perf_counter() - self._entered

    def spent(self, seconds: float) -> None:
        """Count seconds that the callback took, on the host or on the device."""
        self._open += seconds

    def since_row(self) -> tuple[int, float]:
        """Return the number of steps since the last row began, and the seconds they took."""
        return self._row_steps, self._row_total

    def row_begins(self) -> None:
        """Restart the counts of steps and seconds for the next row."""
        self._row_steps, self._row_total = 0, 0.0

    @property
    def fraction(self) -> float:
        """Return callback seconds / all seconds between steps; NaN before the second step."""
        return self._inside / self._total if self._total else math.nan
