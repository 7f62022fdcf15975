"""The worst layers of a window: rollups bound the values, tiles give the exact ones.

The largest sigma of a bucket over its smallest threshold bounds every ratio in the bucket. Buckets
are read exactly in the order of their bounds, until no bound left can change the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from snc_service.store import tiles
from snc_service.store.downsampling import planes_for
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.queries import history, thinned
from snc_service.store.sql.series.attempts import AttemptSegment
from snc_service.store.sql.series.layouts import LayerBook, Layout
from snc_service.store.sql.series.selection import Wanted, layers_of
from snc_service.store.types import Floats, Window, Worst
from snc_service.wire import absent

MOST_BOUNDS = 200_000  # of layers and buckets: 100 bytes each during their computation
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """One metric, or the quotient of two, of the layers ``indexes`` in some segments."""

    connection: Connection
    run_id: int
    layouts: Sequence[Layout]
    metric: str
    below: str | None
    indexes: npt.NDArray[np.int64]
    segments: Sequence[AttemptSegment]

    def wanted(self, metric: str, rows: npt.NDArray[np.intp] | slice) -> Wanted:
        """Return the location of a metric for some rows."""
        some = self.indexes[rows]
        return layers_of(self.connection, self.run_id, self.layouts, metric, some)

    @cached_property
    def bucket_steps(self) -> int:
        """Return a bucket width that rollups can answer."""
        wanted = self.wanted(self.metric, slice(None))
        points = max(1, MOST_BOUNDS // len(self.indexes))
        found = history.bucket_width(self.connection, wanted, self.segments, points)
        shift, _ = thinned.grain(self.connection, self.run_id)
        return max(found, tiles.FANOUT << (shift or 0))


class Known:
    """The largest exact value of each row so far, and its step."""

    def __init__(self, num_rows: int) -> None:
        self.values = np.full(num_rows, -np.inf)
        self.steps = np.full(num_rows, -1, np.int64)

    def see(
        self, question: Question, rows: npt.NDArray[np.intp], spans: Iterable[AttemptSegment]
    ) -> None:
        """Read spans of some rows and keep larger values."""
        above = question.wanted(question.metric, rows)
        below = question.wanted(question.below, rows) if question.below else None
        connection = question.connection
        for span in spans:
            for steps, values in history.values_of(connection, above, span):
                exact = values.astype(np.float64)
                if below is not None:
                    exact = _divided(
                        exact, history.values_at(connection, below, span.attempt, steps)
                    )
                exact[~np.isfinite(exact)] = -np.inf
                at = exact.argmax(axis=1)
                largest = exact[np.arange(len(rows)), at]
                larger = largest > self.values[rows]
                self.values[rows[larger]] = largest[larger]
                self.steps[rows[larger]] = steps[at[larger]]


def worst(
    connection: Connection,
    book: LayerBook,
    run_id: int,
    metric: str,
    window: Window,
    most: int,
    *,
    below: str | None,
) -> list[Worst]:
    """See `Histories.worst`."""
    layouts = book.layouts(connection, run_id)
    reporting = [layout.layers for layout in layouts if metric in layout.metrics]
    segments = history.segments_of(connection, run_id, window)
    if not reporting or not segments:
        return []
    thinned.check_whole(connection, run_id, window.from_step)
    indexes = np.unique(np.concatenate(reporting)).astype(np.int64)
    question = Question(connection, run_id, layouts, metric, below, indexes, segments)
    keys, bounds, nonfinite = _bounds(question)
    known = Known(len(indexes))
    broken = nonfinite > 0
    first = min(most, int(broken.sum()))
    order: list[int] = []
    for rows, num in ((broken, first), (~broken, most - first)):
        _find(question, known, keys, np.where(rows[:, None], bounds, -np.inf), num)
        ranked = np.flatnonzero(rows & (broken | (known.values > -np.inf)))
        order += ranked[np.argsort(-known.values[ranked], kind="stable")][:num].tolist()
    specs = book.specs(connection, run_id)
    return [
        Worst(
            layer=specs[int(indexes[row])].name,
            value=float(known.values[row]) if known.steps[row] >= 0 else None,
            step=int(known.steps[row]) if known.steps[row] >= 0 else None,
            nonfinite=int(nonfinite[row]),
        )
        for row in order
    ]


def _bounds(
    question: Question,
) -> tuple[npt.NDArray[np.int64], Doubles, npt.NDArray[np.int64]]:
    """Return bucket keys [B], upper bounds of their values [R, B], and non-finite counts [R]."""
    connection, everything = question.connection, slice(None)
    above = history.partial_of(
        connection,
        question.wanted(question.metric, everything),
        question.segments,
        question.bucket_steps,
        planes_for(("max",)),
    )
    nonfinite = above.nonfinite.sum(axis=1, dtype=np.int64)
    bounds = above.high.astype(np.float64)
    if question.below is None:
        return above.keys, bounds, nonfinite
    below = history.partial_of(
        connection,
        question.wanted(question.below, everything),
        question.segments,
        question.bucket_steps,
        planes_for(("min", "max")),
    )
    keys, mine, theirs = np.intersect1d(above.keys, below.keys, return_indices=True)
    bounds = bounds[:, mine]
    low, high = below.low[:, theirs].astype(np.float64), below.high[:, theirs].astype(np.float64)
    with np.errstate(all="ignore"):
        # A negative maximum comes nearest to zero over the largest divisor.
        ratio = np.maximum(bounds / low, bounds / high)
    # A divisor of zero or of both signs gives no bound: such a bucket has to be read.
    ratio = np.where(low > 0, ratio, np.inf)
    possible = (bounds > -np.inf) & (low <= high)
    return keys, np.where(possible, ratio, -np.inf), nonfinite


def _find(
    question: Question, known: Known, keys: npt.NDArray[np.int64], bounds: Doubles, most: int
) -> None:
    """Find the exact values of the ``most`` rows with the largest values in ``bounds`` [R, B]."""
    if most == 0:
        return
    blocks = question.indexes // tiles.BLOCK_LAYERS
    possible = bounds > -np.inf
    candidates = possible.any(axis=1)
    least = _least(known.values[candidates], most)
    order = np.argsort(-bounds, axis=None, kind="stable")[: np.count_nonzero(possible)]
    for row, column in zip(
        *(at.tolist() for at in np.unravel_index(order, bounds.shape)), strict=True
    ):
        bound = bounds[row, column]
        if not possible[row, column] or known.values[row] >= bound:
            continue  # read already, or the layer had a larger value elsewhere
        if least >= bound:
            return
        low = int(keys[column]) * question.bucket_steps
        spans = _within(question.segments, low, low + question.bucket_steps)
        known.see(question, np.flatnonzero(blocks == blocks[row]), spans)
        possible[blocks == blocks[row], column] = False
        least = _least(known.values[candidates], most)


def _least(values: Doubles, most: int) -> float:
    """Return the smallest of the ``most`` largest values, -inf if there are fewer."""
    return float(np.partition(values, -most)[-most]) if len(values) >= most else -np.inf


def _within(segments: Sequence[AttemptSegment], low: int, high: int) -> list[AttemptSegment]:
    """Return the parts of segments between two steps."""
    cut = [AttemptSegment(s.attempt, max(s.low, low), min(s.high, high)) for s in segments]
    return [segment for segment in cut if segment.low < segment.high]


def _divided(above: Doubles, below: Floats) -> Doubles:
    """Return the quotients; NaN where the divisor is absent."""
    with np.errstate(all="ignore"):
        quotient = above / below
    quotient[absent(below)] = np.nan
    return quotient
