"""The callback's own cost, as a fraction of the time a training step takes."""

from __future__ import annotations

import math
import time


class Overhead:
    """Two clocks of the host: between calls of step(), and inside them.

    The device's share is added by whoever reads it (`spent`). The first interval is left out: it
    holds the loop's own warm-up.
    """

    def __init__(self) -> None:
        self._entered = math.nan
        self._steps = self._total = self._inside = 0.0
        self._row_steps = self._row_total = 0.0

    def enter(self) -> None:
        """Note that a call of step() begins."""
        now = time.perf_counter()
        if not math.isnan(self._entered):
            self._steps += 1
            self._total += now - self._entered
            self._row_steps += 1
            self._row_total += now - self._entered
        self._entered = now

    def inside(self) -> float:
        """Return the seconds since the call of step() began."""
        return time.perf_counter() - self._entered

    def spent(self, seconds: float) -> None:
        """Count seconds that the callback took, on the host or on the device."""
        if self._steps:
            self._inside += seconds

    def step_seconds(self) -> float | None:
        """Return the mean seconds of a step since the last call of this, None before the second."""
        if not self._row_steps:
            return None
        mean = self._row_total / self._row_steps
        self._row_steps = self._row_total = 0.0
        return mean

    @property
    def fraction(self) -> float:
        """Return callback seconds / all seconds between steps; NaN before the second step."""
        return self._inside / self._total if self._total else math.nan
