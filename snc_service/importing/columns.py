"""A mapped recording as rows of steps, in pieces that batches can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from snc_service.importing.name_map import MappedNames
from snc_service.importing.points import Points, Steps, Values
from snc_service.importing.recording import Recording, SeriesKey
from snc_service.wire import ABSENT
from snc_service.wire.batch import Floats
from snc_service.wire.checks import MAX_COLUMNS, MAX_STEPS

CELLS_AT_ONCE: Final = 2**20  # of a batch; 4 MiB, half of what a service takes by default
# What rules read comes first: they judge a step when its first columns arrive.
FIRST: Final = ("sigma", "sigma_upper", "threshold", "scale", "frobenius", "stable_rank",
                "grad_norm", "update_norm", "loss", "lr")  # fmt: skip


@dataclass(frozen=True)
class ColumnPiece:
    """Columns of some steps of one attempt; a value that was not measured is `ABSENT`.

    ``metrics`` are [S, L], ``scalars`` [S]. ``opens`` says that the attempt begins here.
    """

    attempt: int
    opens: bool
    steps: tuple[int, ...]
    metrics: dict[str, Floats]
    scalars: dict[str, Floats]

    @property
    def num_values(self) -> int:
        """Return how many values were measured."""
        absent = ABSENT.view(np.uint32)
        columns = (*self.metrics.values(), *self.scalars.values())
        return sum(int(np.count_nonzero(c.view(np.uint32) != absent)) for c in columns)


@dataclass(frozen=True)
class _Line:
    """One series in order, and its place in the columns."""

    key: SeriesKey
    layer: int | None
    steps: Steps
    values: Values


class RecordedColumns:
    """A recording in the order of attempts and steps. Memory: that of the recording again."""

    def __init__(self, recording: Recording, names: MappedNames) -> None:
        self.layers = names.layers
        index = {layer: at for at, layer in enumerate(self.layers)}
        gathered: dict[SeriesKey, Points] = {}
        for source, target in names.series.items():
            points = recording.series[source]
            before = gathered.get(target)
            gathered[target] = points if before is None else _joined(before, points)
        self._lines = [
            _Line(key, None if key.layer is None else index[key.layer], *points.ordered())
            for key, points in gathered.items()
        ]
        self.metrics = _sorted(names.names(of_layers=True))
        self.scalars = _sorted(names.names(of_layers=False))
        self.attempts = {
            attempt: _union([line.steps for line in self._lines if line.key.attempt == attempt])
            for attempt in sorted({line.key.attempt for line in self._lines})
        }
        self.num_values = sum(len(line.steps) for line in self._lines)

    @property
    def num_steps(self) -> int:
        """Return how many steps have values, in all attempts."""
        return sum(len(steps) for steps in self.attempts.values())

    @property
    def last_step(self) -> int | None:
        """Return the largest step, None without values."""
        return max((int(steps[-1]) for steps in self.attempts.values() if len(steps)), default=None)

    def digest(self) -> str:
        """Return 16 hex digits that change with any name, step or value."""
        found = hashlib.sha256()
        for line in sorted(self._lines, key=lambda line: tuple(map(str, line.key))):
            found.update(repr(line.key).encode("utf-8", "surrogatepass"))
            found.update(line.steps.tobytes())
            found.update(line.values.tobytes())
        return found.hexdigest()[:16]

    def pieces(self, *, after: int = -1, at_once: int = CELLS_AT_ONCE) -> Iterator[ColumnPiece]:
        """Yield the rows at steps above ``after``; a piece has at most `MAX_COLUMNS` columns.

        Columns that do not fit into one piece follow in further pieces of the same steps. A piece
        has only the steps at which one of its columns was measured.
        """
        groups = [
            (part[: self._num_metrics(part)], part[self._num_metrics(part) :])
            for part in _parts(
                [*((m, True) for m in self.metrics), *((s, False) for s in self.scalars)]
            )
        ]
        for attempt, all_steps in self.attempts.items():
            lines = [line for line in self._lines if line.key.attempt == attempt]
            steps = all_steps[np.searchsorted(all_steps, after, side="right") :]
            wide = max(1, len(self.layers) * max(len(metrics) for metrics, _ in groups))
            size = max(1, min(MAX_STEPS, at_once // wide))
            opens = True
            for start in range(0, len(steps), size):
                for metrics, scalars in groups:
                    piece = self._piece(
                        attempt, opens, steps[start : start + size], lines,
                        [name for name, _ in metrics], [name for name, _ in scalars],
                    )  # fmt: skip
                    if piece is not None:
                        yield piece
                        opens = False

    @staticmethod
    def _num_metrics(part: Sequence[tuple[str, bool]]) -> int:
        return sum(of_layers for _, of_layers in part)

    def _piece(
        self,
        attempt: int,
        opens: bool,
        steps: Steps,
        lines: Sequence[_Line],
        metrics: Sequence[str],
        scalars: Sequence[str],
    ) -> ColumnPiece | None:
        cells = {name: np.full((len(steps), len(self.layers)), ABSENT) for name in metrics}
        row = {name: np.full(len(steps), ABSENT) for name in scalars}
        there = np.zeros(len(steps), np.bool_)
        for line in lines:
            if line.key.name not in (row if line.layer is None else cells):
                continue
            low, high = np.searchsorted(line.steps, (steps[0], steps[-1] + 1))
            at = np.searchsorted(steps, line.steps[low:high])
            values = _floats(line.values[low:high])
            there[at] = True
            if line.layer is None:
                row[line.key.name][at] = values
            else:
                cells[line.key.name][at, line.layer] = values
        if not there.any():
            return None
        return ColumnPiece(
            attempt,
            opens,
            tuple(steps[there].tolist()),
            {name: column[there] for name, column in cells.items()},
            {name: column[there] for name, column in row.items()},
        )


def _sorted(names: Sequence[str]) -> tuple[str, ...]:
    rank = {name: at for at, name in enumerate(FIRST)}
    return tuple(sorted(names, key=lambda name: (rank.get(name, len(rank)), name)))


def _parts(columns: Sequence[tuple[str, bool]]) -> list[Sequence[tuple[str, bool]]]:
    return [columns[at : at + MAX_COLUMNS] for at in range(0, len(columns), MAX_COLUMNS)]


def _joined(first: Points, second: Points) -> Points:
    both = Points()
    for points in (first, second):
        both.steps.extend(points.steps)
        both.values.extend(points.values)
    return both


def _union(parts: Sequence[Steps]) -> Steps:
    """Return the sorted steps of all parts; most series of a run have the same ones."""
    found = np.empty(0, np.int64)
    for steps in parts:
        if not np.array_equal(steps, found):
            found = np.union1d(found, steps)
    return found


def _floats(values: Values) -> Floats:
    """Return float32; no measured NaN keeps a payload, because one of them means "absent"."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(np.float32)
    found[np.isnan(found)] = np.float32(np.nan)
    return found
