"""The tail: batches as received, one row each, read column by column."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series import damage
from snc_service.store.sql.series.attempts import AttemptSegment
from snc_service.store.sql.series.checksums import (
    BLOCK_BYTES,
    BatchPlace,
    broken_blocks,
    of_batch,
)
from snc_service.store.sql.series.layouts import Layout
from snc_service.store.sql.series.selection import Picked, Rows
from snc_service.store.types import Floats, Steps
from snc_service.wire import absent

MOST_STEPS: Final = 2**20  # of a tile with the widest interval that is measured at every step
# Whole blocks around the columns from one to another; parameters: first, end, first.
_BLOCKS: Final = (
    f"substr(v, 1 + 4 * n * ? / {BLOCK_BYTES} * {BLOCK_BYTES}, "
    f"(4 * n * ? + {BLOCK_BYTES - 1}) / {BLOCK_BYTES} * {BLOCK_BYTES} "
    f"- 4 * n * ? / {BLOCK_BYTES} * {BLOCK_BYTES})"
)


def pack_steps(steps: Steps | Sequence[int]) -> bytes | None:
    """Return the offsets of ``steps`` from the first, None if they are evenly spaced."""
    if len(steps) < 3:
        return None
    steps = np.asarray(steps, np.int64)
    if (np.diff(steps) == steps[1] - steps[0]).all():
        return None
    offsets: bytes = (steps - steps[0]).astype("<i8").tobytes()
    return offsets


class UnreadableSteps(ValueError):
    """The steps of a row are none that a batch or tile can have."""

    def __init__(self, first: Any, last: Any) -> None:
        super().__init__(f"a row has steps {first!r} to {last!r}")
        self.steps = damage.whole_steps(first, last)


def unpack_steps(first: int, last: int, n: int, packed: bytes | None) -> Steps:
    """Undo `pack_steps`. Raises `UnreadableSteps` for what cannot be undone."""
    try:
        if packed is not None:
            steps = np.frombuffer(packed, "<i8") + first
        else:
            stride = (last - first) // (n - 1) if n > 1 else 1
            steps = first + stride * np.arange(min(n, MOST_STEPS + 1), dtype=np.int64)
        if len(steps) == n and 0 <= first == steps[0] and steps[-1] == last:
            return steps
    except (TypeError, ValueError, OverflowError, IndexError):
        pass
    raise UnreadableSteps(first, last)


def distinct(steps: Sequence[Steps], low: int, high: int) -> Steps:
    """Return the distinct steps with ``low <= step < high``, sorted."""
    if not steps:
        return np.empty(0, np.int64)
    whole = np.unique(np.concatenate(steps))
    return whole[(whole >= low) & (whole < high)]


def measured_steps(
    connection: Connection, run_id: int, segment: AttemptSegment, layouts: Collection[int]
) -> Steps:
    """Return the distinct steps of the segment's batches of some layouts."""
    rows = connection.execute(
        "select layout, step0, step1, n, steps from tail "
        "where run_id = ? and attempt = ? and step0 < ? and step1 >= ?",
        (run_id, segment.attempt, segment.high, segment.low),
    )
    found = [unpack_steps(*place) for layout, *place in rows if layout in layouts]
    return distinct(found, segment.low, segment.high)


def next_step(
    connection: Connection, run_id: int, span: AttemptSegment, layouts: Collection[int]
) -> int | None:
    """Return the first step at or after ``span.low`` that a batch of some layouts has."""
    rows = connection.execute(
        "select layout, step0, step1, n, steps from tail "
        "where run_id = ? and attempt = ? and step1 >= ? order by step0",
        (run_id, span.attempt, span.low),
    )
    nearest = None
    for layout, *place in rows:
        if nearest is not None and place[0] >= nearest:
            break
        if layout in layouts:
            steps = unpack_steps(*place)
            step = int(steps[np.searchsorted(steps, span.low)])
            nearest = step if nearest is None else min(step, nearest)
    return nearest


@dataclass(frozen=True)
class Cut:
    """The picked columns of one batch as bytes: a span of columns that contains them."""

    id: int
    picked: Picked
    steps: Steps
    data: bytes | memoryview | Floats  # float32 [span, n]


def read_over(
    connection: Connection,
    run_id: int,
    attempt: int,
    picked: Sequence[Picked],
    steps: Steps,
    values: Floats,
) -> None:
    """Lay the tail's batches over ``values`` [R, N] of ``steps`` [N], later ones on top."""
    first, last = int(steps[0]), int(steps[-1])
    cuts = [cut for one in picked for cut in _cuts(connection, run_id, attempt, one, first, last)]
    lay_over(cuts, steps, values)


def lay_over(cuts: list[Cut], steps: Steps, values: Floats) -> None:
    """Lay batches, sorted by id within their layout, over ``values`` [R, N] of ``steps`` [N]."""
    if len({cut.picked.layout.number for cut in cuts}) > 1:
        cuts = _in_turn(cuts)
    start = 0
    for end in range(1, len(cuts) + 1):
        if end == len(cuts) or not _continues(cuts[end - 1], cuts[end]):
            _lay_run_over(steps, values, cuts[start:end])
            start = end


def _in_turn(cuts: list[Cut]) -> list[Cut]:
    """Return cuts in the order of their arrival, unless their layouts have no common row."""
    picked = list({cut.picked.layout.number: cut.picked for cut in cuts}.values())
    rows = np.concatenate([one.rows for one in picked])
    return cuts if len(np.unique(rows)) == len(rows) else sorted(cuts, key=lambda cut: cut.id)


def _cuts(
    connection: Connection, run_id: int, attempt: int, one: Picked, first: int, last: int
) -> list[Cut]:
    """Read a span of columns of the batches that touch some steps; the database slices it."""
    span = AttemptSegment(attempt, first, last + 1)
    read = read_columns(connection, run_id, span, one.layout, one.first, one.span)
    return [Cut(id_, one, steps, data) for id_, steps, data in read]


def whole(connection: Connection, run_id: int, id_: int, layout: Layout) -> Floats:
    """Return all columns [C, n] of one batch. Raises `StoreDamaged`."""
    attempt, step0, step1, n, steps, crcs, data = connection.execute(
        "select attempt, step0, step1, n, steps, crcs, v from tail where run_id = ? and id = ?",
        (run_id, id_),
    ).fetchone()
    if crcs is not None:
        place = BatchPlace(run_id, id_, attempt, layout.number, step0, step1, n)
        broken = broken_blocks(place, steps, 0, data, crcs, -(-len(data) // BLOCK_BYTES))
        if broken:
            raise damage.of_batch(connection, place, layout, broken)
    return np.frombuffer(data, "<f4").reshape(-1, n)


def replace(
    connection: Connection,
    run_id: int,
    id_: int,
    attempt: int,
    layout: int,
    steps: Steps,
    columns: Floats,
) -> None:
    """Let a batch have other ``steps`` [n] and ``columns`` [C, n]."""
    packed, data = pack_steps(steps), columns.tobytes()
    ends = (int(steps[0]), int(steps[-1]), len(steps))
    crcs = of_batch(BatchPlace(run_id, id_, attempt, layout, *ends), packed, data)
    connection.execute(
        "update tail set step0 = ?, step1 = ?, n = ?, steps = ?, size = ?, v = ?, crcs = ? "
        "where run_id = ? and id = ?",
        (*ends, packed, len(data), data, crcs, run_id, id_),
    )


def read_columns(
    connection: Connection,
    run_id: int,
    segment: AttemptSegment,
    layout: Layout,
    first: int,
    span: int,
) -> list[tuple[int, Steps, memoryview]]:
    """Return (id, steps, columns) of the batches of a layout that touch a segment, by id.

    Of the columns, ``span`` from ``first`` on, float32 [span, n]. The database cuts whole blocks
    out of the rows, so that their checksums can be verified. Raises `StoreDamaged`.
    """
    rows = connection.execute(
        f"select id, step0, step1, n, steps, crcs, {_BLOCKS} from tail "
        "where run_id = ? and attempt = ? and layout = ? and step0 < ? and step1 >= ?",
        (
            *(first, first + span, first),
            *(run_id, segment.attempt, layout.number, segment.high, segment.low),
        ),
    )
    found = []
    for id_, step0, step1, n, steps, crcs, data in rows.fetchall():
        if not isinstance(n, int):
            raise UnreadableSteps(step0, step1)
        place = BatchPlace(run_id, id_, segment.attempt, layout.number, step0, step1, n)
        start, end = 4 * n * first, 4 * n * (first + span)
        begin = start // BLOCK_BYTES
        if crcs is not None:
            count = -(-end // BLOCK_BYTES) - begin
            broken = broken_blocks(place, steps, begin, data, crcs, count)
            if broken:
                raise damage.of_batch(connection, place, layout, broken)
        whole = memoryview(data)[start - begin * BLOCK_BYTES : end - begin * BLOCK_BYTES]
        found.append((id_, unpack_steps(step0, step1, n, steps), whole))
    return sorted(found, key=lambda each: each[0])


def _continues(before: Cut, after: Cut) -> bool:
    return after.picked is before.picked and bool(after.steps[0] > before.steps[-1])


def _lay_run_over(steps: Steps, values: Floats, run: Sequence[Cut]) -> None:
    """Lay over batches of one layout with increasing steps, all at once."""
    picked = run[0].picked
    blocks = [np.frombuffer(c.data, "<f4").reshape(picked.span, len(c.steps)) for c in run]
    new_steps = np.concatenate([cut.steps for cut in run])
    at = np.searchsorted(steps, new_steps)
    inside = (at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == new_steps)
    new = np.concatenate(blocks, axis=1)
    if _range(picked.columns) is None:
        new = new[picked.columns - picked.first]
    put_over(values, picked.rows, at[inside], new if inside.all() else new[:, inside])


def put_over(values: Floats, rows: Rows, columns: Rows, new: Floats) -> None:
    """Put ``new`` over ``values`` at distinct rows and increasing columns, except where absent."""
    row_range, column_range = _range(rows), _range(columns)
    where: Any = (row_range, column_range)
    if row_range is None or column_range is None:
        where = np.ix_(rows, columns)
    hidden = absent(new)
    values[where] = np.where(hidden, values[where], new) if hidden.any() else new


def _range(places: Rows) -> slice | None:
    """Return the slice equal to consecutive places, else None; a slice copies 5 times faster."""
    if len(places) and places[-1] - places[0] + 1 == len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return None
