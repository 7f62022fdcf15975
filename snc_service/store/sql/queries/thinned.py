"""Thinned history: answers from rollups and the tail for steps whose tiles were dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from snc_service.store import tiles
from snc_service.store.downsampling import Partial
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series import tail, tile_blocks
from snc_service.store.sql.series.attempts import AttemptSegment
from snc_service.store.sql.series.selection import Rows, Wanted
from snc_service.store.types import HistoryThinned
from snc_service.wire import ABSENT

_NONE = np.empty(0, np.int64)
STEPS_AT_ONCE = 1_024


def grain(connection: Connection, run_id: int) -> tuple[int | None, int]:
    """Return a run's measuring interval, and the step from which exact values are kept.

    The interval is the exponent of a power of two, None before the first fold. Below the step,
    which is 0 for most runs, there are only rollups.
    """
    shift, gone = connection.execute(
        "select run.interval_shift, thinned.below from run "
        "left join thinned on thinned.run_id = run.run_id where run.run_id = ?",
        (run_id,),
    ).fetchone()
    return shift, gone or 0


def check_whole(connection: Connection, run_id: int, from_step: int) -> None:
    """Raise `HistoryThinned` if exact values from ``from_step`` on were dropped."""
    _, end = grain(connection, run_id)
    if from_step < end:
        raise HistoryThinned(end)


def split(segment: AttemptSegment, end: int) -> tuple[AttemptSegment | None, AttemptSegment | None]:
    """Return the parts of a segment below ``end`` and from it on, None for an empty part."""
    coarse = AttemptSegment(segment.attempt, segment.low, min(segment.high, end))
    exact = AttemptSegment(segment.attempt, max(segment.low, end), segment.high)
    return (
        coarse if coarse.low < coarse.high else None,
        exact if exact.low < exact.high else None,
    )


def ends(connection: Connection, wanted: Wanted, segment: AttemptSegment) -> list[int]:
    """Return steps near the first and last of a segment, accurate to a piece of a rollup."""
    steps = tail.measured_steps(connection, wanted.run_id, segment, wanted.counted)
    found = [int(step) for step in steps[[0, -1]]] if len(steps) else []
    (last,) = connection.execute(
        "select last_step from run where run_id = ?", (wanted.run_id,)
    ).fetchone()
    for step0, step1 in tile_blocks.rollup_ends(connection, wanted, segment):
        found += [max(step0, segment.low), min(step1, last, segment.high - 1)]
    return found


def parts(
    connection: Connection,
    wanted: Wanted,
    segment: AttemptSegment,
    bucket_steps: int,
    *,
    shift: int,
    planes: Collection[str],
) -> Iterator[tuple[Rows, Partial]]:
    """Yield the wanted rows in buckets: from rollups, and from batches added since."""
    chunk = tiles.TILE_STEPS << shift
    # Rollups are read in whole chunks; buckets beyond the segment are left out.
    wide = AttemptSegment(
        segment.attempt, segment.low // chunk * chunk, -(-segment.high // chunk) * chunk
    )
    for block in wanted.blocks:
        part = tile_blocks.rollups(
            connection,
            wanted,
            wide,
            block,
            shift=shift,
            bucket_steps=bucket_steps,
            dirty=_NONE,
            planes=planes,
        )
        low, high = segment.low // bucket_steps, (segment.high - 1) // bucket_steps
        yield block.rows, part.only((part.keys >= low) & (part.keys <= high))
    layouts = {one.layout.number for one in wanted.picked}
    steps = tail.measured_steps(connection, wanted.run_id, segment, layouts)
    for start in range(0, len(steps), STEPS_AT_ONCE):
        some = steps[start : start + STEPS_AT_ONCE]
        values = np.full((wanted.num_rows, len(some)), ABSENT, np.float32)
        tail.read_over(connection, wanted.run_id, segment.attempt, wanted.picked, some, values)
        yield np.arange(wanted.num_rows), Partial.of_groups(some // bucket_steps, values, planes)
