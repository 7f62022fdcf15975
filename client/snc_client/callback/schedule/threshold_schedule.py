"""Threshold schedules: a factor on all thresholds that the host computes for each step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from snc_client.callback.interruption import is_from_signal_handler

Schedule: TypeAlias = Callable[[int], float]

log = logging.getLogger("snc")


def warm_up(steps: int, start: float) -> Schedule:
    """Return a schedule: thresholds ``start`` times as high at step 0, unchanged from ``steps`` on.

    In between they fall by the same amount at each step, so that a layer that is above its
    threshold at the start is reduced slowly. Raises ValueError for a start that is not a
    finite number above 0 and for less than one step.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    if not _positive(start) or math.isinf(start):
        raise ValueError(f"start must be a finite number above 0, got {start!r}")

    def factor(step: int) -> float:
        share = min(max(step / steps, 0.0), 1.0)
        return start + (1.0 - start) * share

    return factor


class ThresholdFactor:
    """Evaluates a schedule at a step; where that fails, the last valid factor stays.

    Raises ValueError at construction for a schedule that gives no factor for step 1. A later
    failure is logged once: it neither ends the training nor removes the thresholds.
    """

    def __init__(self, schedule: Schedule | None) -> None:
        self._schedule = schedule
        self._last = 1.0
        self._said = False
        if schedule is None:
            return
        if not callable(schedule):
            raise ValueError(
                f"schedule must be a function of the step, got {schedule!r}: "
                "for a warm-up write warm_up(steps, start)"
            )
        first = schedule(1)
        if not _positive(first):
            raise ValueError(
                f"schedule must give a factor above 0 (inf: no threshold), got {first!r} at step 1"
            )

    def at(self, step: int) -> float:
        """Return the factor of all thresholds at ``step``."""
        if self._schedule is not None:
            try:
                factor = self._schedule(step)
            except Exception as error:
                if is_from_signal_handler(error):
                    raise
                self._complain(step, repr(error))
            else:
                if _positive(factor):
                    self._last = float(factor)
                else:
                    self._complain(step, repr(factor))
        return self._last

    def _complain(self, step: int, got: str) -> None:
        if not self._said:
            self._said = True
            log.warning(
                "snc: schedule must give a factor above 0, got %s at step %d: thresholds stay",
                got,
                step,
            )


def _positive(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) > 0
