"""A recording: one run as another tool wrote it down, before its names are mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.importing.points import Points, Steps, Values
from snc_service.importing.times import RecordedTimes
from snc_service.wire import MAX_STEP, WireError
from snc_service.wire.checks import shown

MOST_POINTS: Final = 2**26  # of one recording: a GiB of memory
MOST_NAMES: Final = 200_000
MOST_NAME_LETTERS: Final = 1_024
MOST_CONFIG_BYTES: Final = 128 * 1024
MOST_CONFIG_TEXT: Final = 1_000  # letters of one value
MOST_NAMES_TOLD: Final = 4
STEP_SECONDS: Final = "step_seconds"  # what the page and others take for the time of a step

End: TypeAlias = Literal["finished", "failed"]


class SeriesKey(NamedTuple):
    """What a series is of. ``layer`` is None for a name that was not divided by its source."""

    attempt: int
    name: str
    layer: str | None = None


@dataclass
class LeftOut:
    """How many values were left out for one reason; the first names, one more than is told."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str = "", count: int = 1) -> None:
        """Count values of one name."""
        self.count += count
        short = name[:80]
        if short and short not in self.names and len(self.names) <= MOST_NAMES_TOLD:
            self.names.append(short)

    def told(self, reason: str) -> str:
        """Return the sentence about them."""
        more = ", ..." if len(self.names) > MOST_NAMES_TOLD else ""
        names = f": {', '.join(self.names[:MOST_NAMES_TOLD])}{more}" if self.names else ""
        return f"left out {self.count} {reason}{names}"


@dataclass
class Recording:
    """One run: its series and what its source says of it.

    ``id`` is the same whenever the same run is read. ``exact`` says that names are those of this
    project, so they are not mapped. ``notes`` are sentences about what was left out.
    """

    id: str
    kind: str
    source: str
    name: str = ""
    project: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    end: End = "finished"
    exact: bool = False
    series: dict[SeriesKey, Points] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)  # by reason
    num_points: int = 0
    times: RecordedTimes = field(default_factory=RecordedTimes)

    def add(self, key: SeriesKey, step: int, value: float) -> None:
        """Append one value. Raises `WireError` beyond `MOST_POINTS` and `MOST_NAMES`."""
        if not 0 <= step <= MAX_STEP:
            self.leave_out("values at steps below 0 or above 2^53", key.name)
            return
        points = self._points(key, 1)
        points.steps.append(step)
        points.values.append(value)

    def extend(self, key: SeriesKey, steps: Steps, values: Values) -> None:
        """Append values at valid steps. Raises `WireError` as `add` does."""
        points = self._points(key, len(steps))
        points.steps.frombytes(np.ascontiguousarray(steps, np.int64).tobytes())
        points.values.frombytes(np.ascontiguousarray(values, np.float64).tobytes())

    def add_step_seconds(self) -> None:
        """Add the scalar ``step_seconds`` that follows from the times, unless it is there.

        It has the steps that have another value: a row of texts alone makes no step.
        """
        for attempt, (steps, values) in self.times.step_seconds().items():
            key = SeriesKey(attempt, STEP_SECONDS)
            if key not in self.series:
                there = self._measured(attempt, steps)
                self.extend(key, steps[there], values[there])

    def _measured(self, attempt: int, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return which of the sorted ``steps`` have a value in some series of an attempt."""
        found = np.zeros(len(steps), np.bool_)
        for key, points in self.series.items():
            if found.all():
                break
            if key.attempt == attempt:
                measured = np.frombuffer(points.steps, np.int64)
                at = np.minimum(np.searchsorted(steps, measured), len(steps) - 1)
                found[at[steps[at] == measured]] = True
        return found

    def _points(self, key: SeriesKey, more: int) -> Points:
        self.num_points += more
        if self.num_points > MOST_POINTS:
            raise WireError(self.source, f"must hold at most {MOST_POINTS} values of a run")
        points = self.series.get(key)
        if points is None:
            if len(self.series) >= MOST_NAMES:
                raise WireError(self.source, f"must hold at most {MOST_NAMES} names in a run")
            if len(key.name) > MOST_NAME_LETTERS:
                raise WireError(
                    self.source, f"must hold names of at most {MOST_NAME_LETTERS} letters, "
                    f"got {shown(key.name)}"
                )  # fmt: skip
            points = self.series[key] = Points()
        return points

    def leave_out(self, reason: str, name: str = "", count: int = 1) -> None:
        """Count values that cannot be imported; the first names are told."""
        self.left_out.setdefault(reason, LeftOut()).add(name, count)

    def remarks(self) -> list[str]:
        """Return the sentences about what was left out."""
        return [*self.notes, *(left.told(reason) for reason, left in self.left_out.items())]


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a service stores of a config: finite JSON, long texts cut, bounded as a whole."""
    kept: dict[str, Any] = {}
    room = MOST_CONFIG_BYTES
    for name, value in config.items():
        if isinstance(value, str):
            value = value[:MOST_CONFIG_TEXT]
        try:
            text = json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError):
            continue
        room -= len(text)
        if room < 0:
            break
        kept[name] = value
    return kept
