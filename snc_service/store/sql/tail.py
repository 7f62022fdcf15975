"""The tail: batches as they came, one row each, read column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.store.protocol import Floats, Steps
from snc_service.store.sql.attempts import Segment
from snc_service.store.sql.database import Connection
from snc_service.store.sql.layers import Layout
from snc_service.wire import ABSENT, absent

# Values held at once while a matrix is read; bounds memory, not answers.
SLICE_VALUES = 4_000_000


@dataclass(frozen=True)
class Picked:
    """The columns of a layout that a query needs: ``columns`` go to ``rows`` of the answer."""

    layout: Layout
    columns: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp]

    @property
    def first(self) -> int:
        """Return the first column."""
        return int(self.columns.min())

    @property
    def span(self) -> int:
        """Return how many columns there are from the first to the last."""
        return int(self.columns.max()) - self.first + 1


def pack_steps(steps: Steps) -> bytes | None:
    """Return the offsets of ``steps`` from the first, None if they are evenly spaced."""
    if len(steps) < 3 or (np.diff(steps) == steps[1] - steps[0]).all():
        return None
    offsets: bytes = (steps - steps[0]).astype("<i8").tobytes()
    return offsets


def unpack_steps(first: int, last: int, n: int, packed: bytes | None) -> Steps:
    """Undo `pack_steps`."""
    if packed is not None:
        return np.frombuffer(packed, "<i8") + first
    stride = (last - first) // (n - 1) if n > 1 else 1
    return first + stride * np.arange(n, dtype=np.int64)


def measured_steps(
    connection: Connection, run_id: int, segment: Segment, picked: Sequence[Picked]
) -> Steps:
    """Return the distinct steps of the segment's batches that have one of the columns."""
    rows = connection.execute(
        "select layout, step0, step1, n, steps from tail "
        "where run_id = ? and attempt = ? and step0 < ? and step1 >= ?",
        (run_id, segment.attempt, segment.high, segment.low),
    )
    wanted = {one.layout.number for one in picked}
    found = [unpack_steps(*place) for layout, *place in rows if layout in wanted]
    if not found:
        return np.empty(0, np.int64)
    steps = np.unique(np.concatenate(found))
    return steps[(steps >= segment.low) & (steps < segment.high)]


def matrices(
    connection: Connection,
    run_id: int,
    segment: Segment,
    picked: Sequence[Picked],
    steps: Steps,
    num_rows: int,
) -> Iterator[tuple[Steps, Floats]]:
    """Yield (steps [N], values [R, N]) over ``steps`` in bounded slices; later batches win."""
    num = max(1_024, SLICE_VALUES // max(num_rows, 1))
    for start in range(0, len(steps), num):
        part = steps[start : start + num]
        values = np.full((num_rows, len(part)), ABSENT, np.float32)
        lay_over(connection, run_id, segment.attempt, picked, part, values)
        yield part, values


def lay_over(
    connection: Connection,
    run_id: int,
    attempt: int,
    picked: Sequence[Picked],
    steps: Steps,
    values: Floats,
) -> None:
    """Lay the batches over ``values`` [R, N] of ``steps`` [N], in the order of their arrival."""
    cuts = [
        cut
        for one in picked
        for cut in _cuts(connection, run_id, attempt, one, int(steps[0]), int(steps[-1]))
    ]
    num_rows = sum(len(one.rows) for one in picked)
    if num_rows != len(np.unique(np.concatenate([one.rows for one in picked]))):
        # Layouts that share rows must take turns as their batches came.
        cuts.sort(key=lambda cut: cut.id)
    start = 0
    for end in range(1, len(cuts) + 1):
        if end == len(cuts) or not _continues(cuts[end - 1], cuts[end]):
            _lay_run_over(steps, values, cuts[start:end])
            start = end


@dataclass(frozen=True)
class _Cut:
    """The picked columns of one batch, still bytes: a span of columns that contains them."""

    id: int
    picked: Picked
    steps: Steps
    data: bytes


def _cuts(
    connection: Connection, run_id: int, attempt: int, one: Picked, first: int, last: int
) -> list[_Cut]:
    """Read a span of columns of the batches that touch some steps; the database cuts them out."""
    rows = connection.execute(
        "select id, step0, step1, n, steps, substr(v, 1 + 4 * n * ?, 4 * n * ?) from tail "
        "where run_id = ? and attempt = ? and layout = ? and step0 <= ? and step1 >= ?",
        (one.first, one.span, run_id, attempt, one.layout.number, last, first),
    )
    cuts = [
        _Cut(id_, one, unpack_steps(step0, step1, n, steps), data)
        for id_, step0, step1, n, steps, data in rows
    ]
    return sorted(cuts, key=lambda cut: cut.id)


def _continues(before: _Cut, after: _Cut) -> bool:
    return after.picked is before.picked and after.steps[0] > before.steps[-1]


def _lay_run_over(steps: Steps, values: Floats, run: Sequence[_Cut]) -> None:
    """Lay over batches of one layout whose steps grow, all at once."""
    picked = run[0].picked
    blocks = [np.frombuffer(c.data, "<f4").reshape(picked.span, len(c.steps)) for c in run]
    new_steps = np.concatenate([cut.steps for cut in run])
    at = np.searchsorted(steps, new_steps)
    inside = (at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == new_steps)
    columns = picked.columns - picked.first
    new = np.concatenate(blocks, axis=1)[columns][:, inside]
    where = np.ix_(picked.rows, at[inside])
    values[where] = np.where(absent(new), values[where], new)
