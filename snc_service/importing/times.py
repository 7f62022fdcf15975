"""Times of a source: when each step was written, and what follows from them."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any, Final

import numpy as np

from snc_service.importing.points import Points, Steps, Values
from snc_service.wire import MAX_STEP

EARLIEST: Final = 1e8  # Unix seconds, in 1973; a smaller number is no point in time
LATEST: Final = 253_402_300_799.0  # the end of the year 9999
TIDIED: Final = 2**20  # times, after which those of the same steps are joined
UNITS: Final = (1.0, 1e3, 1e6, 1e9)  # of a second: what tools write


def unix_seconds(value: Any) -> float | None:
    """Return a time as Unix seconds, None if it is none.

    Takes seconds, milli-, micro- and nanoseconds since 1970, told apart by their size, a datetime,
    and ISO 8601 as text. A time without a zone is taken as UTC.
    """
    if isinstance(value, str):
        value = _of_text(value)
    if isinstance(value, datetime):
        value = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        try:
            value = value.timestamp()
        except (OverflowError, ValueError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # The years from 1973 to 5138 in one unit are no such years in another.
    return next((value / unit for unit in UNITS if EARLIEST <= value / unit < 1e11), None)


def _of_text(text: str) -> float | datetime | None:
    text = text.strip()[:64]
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        return None


class RecordedTimes:
    """Unix seconds at steps, by attempt; of one step the last time counts, as its last value."""

    def __init__(self) -> None:
        self._attempts: dict[int, Points] = {}
        self._room = TIDIED

    def add(self, attempt: int, step: int, seconds: float | None) -> None:
        """Note when a step was written. Anything that is no time is left out."""
        if seconds is None or not 0 <= step <= MAX_STEP or not EARLIEST <= seconds <= LATEST:
            return
        points = self._attempts.setdefault(attempt, Points())
        if points.steps and points.steps[-1] == step:  # further series of the same row
            points.values[-1] = seconds
            return
        if len(points.steps) >= self._room:  # every series of a run may name the same steps again
            points = self._attempts[attempt] = _of(*points.ordered())
            self._room = max(TIDIED, 2 * len(points.steps))
        points.steps.append(step)
        points.values.append(seconds)

    def placed(self, steps: Steps) -> RecordedTimes:
        """Return the same times at the steps of their rows; a row at a negative step has none."""
        found = RecordedTimes()
        for attempt, points in self._attempts.items():
            rows = np.frombuffer(points.steps, np.int64)
            kept = steps[rows] >= 0
            found._attempts[attempt] = _of(steps[rows][kept], np.frombuffer(points.values)[kept])
        return found

    def span(self) -> tuple[float, float] | None:
        """Return the first and the last time, None without times."""
        values = [value for points in self._attempts.values() for value in points.values]
        return (min(values), max(values)) if values else None

    def step_seconds(self) -> dict[int, tuple[Steps, Values]]:
        """Return the seconds per step from each step to the next one, by attempt.

        The last step has the value of the one before. A clock that went back makes 0.
        """
        found = {}
        for attempt, points in self._attempts.items():
            steps, times = points.ordered()
            if len(steps) > 1:
                each = np.maximum(np.diff(times), 0) / np.diff(steps)
                found[attempt] = (steps, np.append(each, each[-1]))
        return found


def _of(steps: Steps, values: Values) -> Points:
    points = Points()
    points.steps.frombytes(np.ascontiguousarray(steps, np.int64).tobytes())
    points.values.frombytes(np.ascontiguousarray(values, np.float64).tobytes())
    return points


def as_text(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC, to the second."""
    at = datetime.fromtimestamp(math.floor(seconds), timezone.utc)
    return at.isoformat().replace("+00:00", "Z")
