"""Folding: batches of the tail become tiles and rollups, a chunk of steps at a time.

A chunk is an aligned range of 1024 measuring intervals. It is read and encoded from a snapshot,
then one short transaction removes exactly the batches that were read and writes the tiles. Where
there are row locks, one process at a time folds a run, and ingest does not wait for it. The run's
``epoch`` guards it everywhere: whoever folds a run second starts again from a new snapshot.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from snc_service.store import tiles
from snc_service.store.protocol import Floats, Steps
from snc_service.store.sql import deletion, rollups
from snc_service.store.sql.database import Connection, Database
from snc_service.store.sql.layers import LayerBook, Layout, metric_numbers
from snc_service.store.sql.rollups import Changes, Place
from snc_service.store.sql.tail import Cut, distinct, lay_over, pack_steps, unpack_steps
from snc_service.store.sql.wanted import Picked
from snc_service.wire import ABSENT, absent

IDLE_SECONDS = 60.0  # a run that sends nothing for so long is folded as far as it is
MOST_TAIL_BYTES = 32 * 2**20  # of one attempt, whole or not; more for very wide runs
MANY_STEPS = 256  # of a complete chunk are worth folding at once, fewer wait for company
MOST_SHIFT = 10


@dataclass(frozen=True)
class Chunk:
    """The steps ``low <= step < high`` of one attempt, in which something waits in the tail."""

    run_id: int
    attempt: int
    shift: int
    low: int

    @property
    def high(self) -> int:
        """Return the step behind the last."""
        return self.low + (tiles.TILE_STEPS << self.shift)


@dataclass(frozen=True)
class Waiting:
    """One batch of the tail that has steps in a chunk, with all its columns [C, n]."""

    id: int
    layout: Layout
    steps: Steps
    columns: Floats


def fold(database: Database, book: LayerBook, budget_s: float, now: float) -> int:
    """Fold what is due until the time is up, at least one chunk; return the values folded."""
    deadline = time.monotonic() + budget_s
    deletion.resume(database)
    with database.read() as connection:
        chunks = [chunk for due in _due_runs(connection, now) for chunk in due]
    num_values = 0
    for chunk in chunks:
        num_values += fold_chunk(database, book, chunk)
        if time.monotonic() >= deadline:
            break
    database.checkpoint()
    if not chunks:
        database.reclaim()
    return num_values


def fold_chunk(database: Database, book: LayerBook, chunk: Chunk) -> int:
    """Fold one chunk; 0 if another process folds the run, or it is gone."""
    with database.read() as connection:
        # Nobody else ever writes this row. It is locked until the tiles are written, because the
        # reading transaction lasts so long; the run's own row would make ingest wait.
        claimed = connection.execute(
            f"select run_id from run_config where run_id = ?{connection.skip_locked}",
            (chunk.run_id,),
        ).fetchone()
        row = connection.execute(
            "select epoch from run where run_id = ? and coalesce(interval_shift, ?) = ?",
            (chunk.run_id, chunk.shift, chunk.shift),
        ).fetchone()
        if claimed is None or row is None:
            return 0
        waiting = _waiting(connection, book, chunk)
        changes = Changes()
        for place, block_steps, values in _blocks(connection, chunk, waiting):
            _fold_block(connection, changes, chunk, place, block_steps, values)
        if not _write(database, chunk, row[0], waiting, changes):
            return 0
    return sum(int(_inside(w.steps, chunk).sum()) * len(w.columns) for w in waiting)


def _write(
    database: Database, chunk: Chunk, epoch: int, waiting: Sequence[Waiting], changes: Changes
) -> bool:
    """Replace what was read by its tiles, unless the run was folded or deleted meanwhile."""
    with database.write() as connection:
        unchanged = connection.execute(
            "update run set epoch = epoch + 1, interval_shift = ? where run_id = ? and epoch = ?",
            (chunk.shift, chunk.run_id, epoch),
        ).rowcount
        if unchanged:
            _take_from_tail(connection, chunk, waiting)
            changes.apply(connection)
    return unchanged > 0


def _due_runs(connection: Connection, now: float) -> Iterator[list[Chunk]]:
    """Yield the due chunks of each attempt that may have some, from one scan of an index."""
    rows = connection.execute(
        "select tail.run_id, tail.attempt, min(tail.step0), max(tail.step1), sum(tail.n), "
        "sum(tail.size), max(run.interval_shift), "
        "max(case when run.state = 'active' and run.updated_at > ? then 0 else 1 end) "
        "from tail join run on run.run_id = tail.run_id "
        "group by tail.run_id, tail.attempt order by tail.run_id, tail.attempt",
        (now - IDLE_SECONDS,),
    ).fetchall()
    chosen: dict[int, int] = {}
    for run_id, attempt, first, last, num_steps, num_bytes, shift, quiet in rows:
        shift = chosen.get(run_id, shift)
        everything = bool(quiet) or _too_large(num_bytes, num_steps)
        if everything or last - first >= _overdue(tiles.TILE_STEPS << (shift or 0)):
            due = _due_chunks(connection, run_id, attempt, shift, everything, now)
            if due:
                chosen[run_id] = due[0].shift
            yield due


def _due_chunks(
    connection: Connection,
    run_id: int,
    attempt: int,
    shift: int | None,
    everything: bool,
    now: float,
) -> list[Chunk]:
    rows = connection.execute(
        "select step0, step1, n, steps, received_at from tail "
        "where run_id = ? and attempt = ? order by id",
        (run_id, attempt),
    ).fetchall()
    pieces = [unpack_steps(*row[:4]) for row in rows]
    shift = _interval_shift(pieces) if shift is None else shift
    width = tiles.TILE_STEPS << shift
    newest = max(int(steps[-1]) for steps in pieces)
    waiting: Counter[int] = Counter()
    since: dict[int, float] = {}
    for steps, row in zip(pieces, rows, strict=True):
        for number, count in zip(*np.unique(steps // width, return_counts=True), strict=True):
            waiting[int(number)] += int(count)
            since.setdefault(int(number), row[4])
    return [
        Chunk(run_id, attempt, shift, number * width)
        for number in sorted(waiting)
        if everything
        or (
            newest - number * width >= _overdue(width)
            and (waiting[number] >= MANY_STEPS or since[number] <= now - IDLE_SECONDS)
        )
    ]


def _overdue(width: int) -> int:
    """Return how far a run is past a chunk's first step when no more of it is expected.

    An eighth more than the chunk: other writers of the run may be a little behind.
    """
    return width + width // 8


def _too_large(num_bytes: int, num_steps: int) -> bool:
    """Return whether a tail holds more than its bound, and an eighth of a very wide chunk."""
    a_chunk = num_bytes * tiles.TILE_STEPS // num_steps
    return num_bytes > max(MOST_TAIL_BYTES, a_chunk // 8)


def _interval_shift(pieces: Sequence[Steps]) -> int:
    """Return the power of two at or below the usual distance of measured steps."""
    distances = np.diff(np.unique(np.concatenate(pieces)))
    usual = int(np.median(distances)) if len(distances) else 1
    return min(max(usual, 1).bit_length() - 1, MOST_SHIFT)


def _inside(steps: Steps, chunk: Chunk) -> np.ndarray:
    return (steps >= chunk.low) & (steps < chunk.high)


def _waiting(connection: Connection, book: LayerBook, chunk: Chunk) -> list[Waiting]:
    layouts = {layout.number: layout for layout in book.layouts(connection, chunk.run_id)}
    rows = connection.execute(
        "select id, layout, step0, step1, n, steps, v from tail "
        "where run_id = ? and attempt = ? and step0 < ? and step1 >= ?",
        (chunk.run_id, chunk.attempt, chunk.high, chunk.low),
    )
    found = [
        Waiting(id_, layouts[layout], unpack_steps(step0, step1, n, packed), _columns(v, n))
        for id_, layout, step0, step1, n, packed, v in rows
    ]
    return sorted(found, key=lambda waiting: waiting.id)


def _columns(v: bytes, n: int) -> Floats:
    return np.frombuffer(v, "<f4").reshape(-1, n)


def _blocks(
    connection: Connection, chunk: Chunk, waiting: Sequence[Waiting]
) -> Iterator[tuple[Place, Steps, Floats]]:
    """Yield for every block of every metric and scalar its measured steps and new values."""
    layouts = {w.layout.number: w.layout for w in waiting}
    for (kind, name), metric in metric_numbers(connection, chunk.run_id).items():
        picked = {
            number: one
            for number, layout in layouts.items()
            if (one := _all_of(layout, kind, name)) is not None
        }
        if not picked:
            continue
        values, steps = _matrix(picked, waiting, chunk)
        for block, known in _measured(picked, waiting, chunk):
            lanes = slice(block * tiles.BLOCK_LAYERS, (block + 1) * tiles.BLOCK_LAYERS)
            place = Place(chunk.run_id, chunk.attempt, metric, block, chunk.shift)
            yield place, known, values[lanes][:, np.searchsorted(steps, known)]


def _measured(
    picked: dict[int, Picked], waiting: Sequence[Waiting], chunk: Chunk
) -> Iterator[tuple[int, Steps]]:
    """Yield each block that some layout touches, and the steps of the batches that do."""
    blocks = {number: one.rows // tiles.BLOCK_LAYERS for number, one in picked.items()}
    known: dict[frozenset[int], Steps] = {}
    for block in np.unique(np.concatenate(list(blocks.values()))).tolist():
        touching = frozenset(number for number, some in blocks.items() if (some == block).any())
        if touching not in known:
            known[touching] = _steps_of([w for w in waiting if w.layout.number in touching], chunk)
        if len(known[touching]):
            yield block, known[touching]


def _all_of(layout: Layout, kind: str, name: str) -> Picked | None:
    """Return all columns of a metric or scalar; the rows are the run's layers."""
    if kind == "run" and name in layout.scalars:
        zero = np.zeros(1, np.intp)
        return Picked(layout, zero + layout.scalar_column(name), zero)
    if kind == "layer" and name in layout.metrics and len(layout.layers):
        columns = layout.columns(name)
        return Picked(layout, np.arange(columns.start, columns.stop), layout.layers.astype(np.intp))
    return None


def _matrix(
    picked: dict[int, Picked], waiting: Sequence[Waiting], chunk: Chunk
) -> tuple[Floats, Steps]:
    """Return one metric of all layers [L, N], later batches on top, and the steps [N]."""
    some = [w for w in waiting if w.layout.number in picked]
    steps = _steps_of(some, chunk)
    num_rows = max(int(one.rows.max()) for one in picked.values()) + 1
    values = np.full((num_rows, len(steps)), ABSENT, np.float32)
    cuts = []
    for w in some:
        one = picked[w.layout.number]
        data = np.ascontiguousarray(w.columns[one.first : one.first + one.span])
        cuts.append(Cut(w.id, one, w.steps, data))
    lay_over(sorted(cuts, key=lambda cut: (cut.picked.layout.number, cut.id)), steps, values)
    return values, steps


def _steps_of(waiting: Sequence[Waiting], chunk: Chunk) -> Steps:
    return distinct([w.steps for w in waiting], chunk.low, chunk.high)


def _fold_block(
    connection: Connection,
    changes: Changes,
    chunk: Chunk,
    place: Place,
    steps: Steps,
    values: Floats,
) -> None:
    """Lay the new values over the chunk's tile, if there is one, and roll the result up."""
    key = (place.run_id, place.attempt, place.metric, 0, place.block)
    row = connection.execute(
        "select step0, step1, n, steps, enc, v from tile where run_id = ? and attempt = ? "
        "and metric = ? and level = ? and block = ? and step0 >= ? and step0 < ?",
        (*key, chunk.low, chunk.high),
    ).fetchone()
    if row is not None:
        step0, step1, n, packed, form, data = row
        changes.deleted.append((*key, step0))
        tile_steps = unpack_steps(step0, step1, n, packed)
        steps, values = _laid_over(tile_steps, tiles.decode(form, data, n), steps, values)
    form, data = tiles.encode(values)
    ends = (int(steps[0]), int(steps[-1]), len(steps))
    changes.put(place, 0, ends, (form, pack_steps(steps), data))
    rollups.add(connection, changes, place, chunk.low, steps, values, alone=row is None)


def _laid_over(
    old_steps: Steps, old: Floats, new_steps: Steps, new: Floats
) -> tuple[Steps, Floats]:
    steps = np.union1d(old_steps, new_steps)
    values = np.full((max(len(old), len(new)), len(steps)), ABSENT, np.float32)
    values[: len(old), np.searchsorted(steps, old_steps)] = old
    where = (slice(len(new)), np.searchsorted(steps, new_steps))
    values[where] = np.where(absent(new), values[where], new)
    return steps, values


def _take_from_tail(connection: Connection, chunk: Chunk, waiting: Sequence[Waiting]) -> None:
    """Delete what was folded; a batch that reaches beyond the chunk keeps the rest."""
    for w in waiting:
        rest = ~_inside(w.steps, chunk)
        steps = w.steps[rest]
        if not len(steps):
            connection.execute("delete from tail where run_id = ? and id = ?", (chunk.run_id, w.id))
            continue
        connection.execute(
            "update tail set step0 = ?, step1 = ?, n = ?, steps = ?, size = ?, v = ? "
            "where run_id = ? and id = ?",
            (
                int(steps[0]),
                int(steps[-1]),
                len(steps),
                pack_steps(steps),
                4 * len(w.columns) * len(steps),
                np.ascontiguousarray(w.columns[:, rest]).tobytes(),
                chunk.run_id,
                w.id,
            ),
        )
