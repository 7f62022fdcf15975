"""Chunks due for folding: complete chunks, tails that grow too large, idle runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from snc_service.store import tiles
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series.tail import UnreadableSteps, unpack_steps
from snc_service.store.types import Steps

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # a run without new batches for this long is folded completely
MOST_TAIL_BYTES = 32 * 2**20  # of one attempt, complete chunk or not; more for very wide runs
MANY_STEPS = 256  # steps of a complete chunk to fold at once; fewer wait for more
MOST_SHIFT = 10


@dataclass(frozen=True)
class Chunk:
    """The steps ``low <= step < high`` of one attempt, with batches in the tail."""

    run_id: int
    attempt: int
    shift: int
    low: int

    @property
    def high(self) -> int:
        """Return the step after the last."""
        return self.low + (tiles.TILE_STEPS << self.shift)


def due_runs(connection: Connection, now: float) -> Iterator[list[Chunk]]:
    """Yield the due chunks of each attempt that has any, from one scan of an index."""
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
            try:
                due = _due_chunks(connection, run_id, attempt, shift, everything, now)
            except UnreadableSteps as error:  # until it is repaired; all others are folded
                log.error("an attempt of run number %d cannot be folded: %s", run_id, error)
                continue
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
    """Return the steps from a chunk's start after which no more of it is expected.

    An eighth more than the chunk: other writers of the run may be slightly behind.
    """
    return width + width // 8


def _too_large(num_bytes: int, num_steps: int) -> bool:
    """Return whether a tail is above its bound, and above an eighth of a very wide chunk."""
    a_chunk = num_bytes * tiles.TILE_STEPS // num_steps
    return num_bytes > max(MOST_TAIL_BYTES, a_chunk // 8)


def _interval_shift(pieces: Sequence[Steps]) -> int:
    """Return the exponent of the largest power of two not above the usual step distance."""
    distances = np.diff(np.unique(np.concatenate(pieces)))
    usual = int(np.median(distances)) if len(distances) else 1
    return min(max(usual, 1).bit_length() - 1, MOST_SHIFT)
