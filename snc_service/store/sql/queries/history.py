"""History queries: batches, tiles and rollups combined, attempt by attempt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from snc_service.store import downsampling, tiles
from snc_service.store.downsampling import PLANES, Partial
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.queries import thinned
from snc_service.store.sql.series import tail, tile_blocks
from snc_service.store.sql.series.attempts import Attempts, AttemptSegment
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.sql.series.selection import Rows, Wanted, layers_of, scalar_of
from snc_service.store.types import Buckets, Floats, Steps, Window
from snc_service.wire import ABSENT

# Values in memory at once during a read; bounds memory, not answers. A slice has 1,024 steps at
# least, because a tile is decoded whole.
SLICE_VALUES = 1_000_000
LAYERS_AT_ONCE = 2_048


def of_layers(
    connection: Connection,
    book: LayerBook,
    run_id: int,
    metric: str,
    names: Sequence[str],
    window: Window,
    planes: Collection[str],
) -> Buckets:
    """Return one metric of some layers, one row per layer."""
    indexes, again = np.unique(book.indexes(connection, run_id, names), return_inverse=True)
    layouts = book.layouts(connection, run_id)
    wanted = layers_of(connection, run_id, layouts, metric, indexes.astype(np.int64))
    segments = segments_of(connection, run_id, window)
    bucket_steps = bucket_width(connection, wanted, segments, window.points)
    parts: list[tuple[Rows, Partial]] = []
    for start in range(0, len(indexes), LAYERS_AT_ONCE):
        some = indexes[start : start + LAYERS_AT_ONCE].astype(np.int64)
        if len(indexes) > LAYERS_AT_ONCE:
            wanted = layers_of(connection, run_id, layouts, metric, some)
        partial = partial_of(connection, wanted, segments, bucket_steps, planes)
        parts.append((np.arange(start, start + len(some)), partial))
    whole = downsampling.merged(len(indexes), parts, planes)
    return downsampling.finished(names, whole.rows_taken(again.ravel()), bucket_steps)


def of_scalar(
    connection: Connection, book: LayerBook, run_id: int, scalar: str, window: Window
) -> Buckets:
    """Return one scalar."""
    wanted = scalar_of(connection, run_id, book.layouts(connection, run_id), scalar)
    segments = segments_of(connection, run_id, window)
    bucket_steps = bucket_width(connection, wanted, segments, window.points)
    partial = partial_of(connection, wanted, segments, bucket_steps)
    return downsampling.finished((scalar,), partial, bucket_steps)


def segments_of(connection: Connection, run_id: int, window: Window) -> list[AttemptSegment]:
    """Return the steps of each attempt that a window shows."""
    attempts = Attempts.load(connection, run_id)
    return attempts.view(window.attempt, window.from_step, window.to_step)


def bucket_width(
    connection: Connection, wanted: Wanted, segments: Sequence[AttemptSegment], points: int
) -> int:
    """Return the bucket width; folding does not change it."""
    count, least = 0, 1
    ends: list[int] = []
    shift, gone = thinned.grain(connection, wanted.run_id)
    for whole in segments:
        coarse, segment = thinned.split(whole, gone)
        if coarse is not None and (found_ends := thinned.ends(connection, wanted, coarse)):
            count, least = points + 1, tiles.FANOUT << (shift or 0)
            ends += found_ends
        if segment is None:
            continue
        steps = tail.measured_steps(connection, wanted.run_id, segment, wanted.counted)
        found = tile_blocks.steps_between(connection, wanted, segment, most=points)
        if found is None:
            count = max(count, points + 1)
            ends += tile_blocks.ends(connection, wanted, segment)
        else:
            steps = tail.distinct([*found, steps], segment.low, segment.high)
            count += len(steps)
        ends += [int(step) for step in steps[[0, -1]]] if len(steps) else []
    return max(least, downsampling.width(count, min(ends), max(ends), points)) if ends else 1


def partial_of(
    connection: Connection,
    wanted: Wanted,
    segments: Sequence[AttemptSegment],
    bucket_steps: int,
    planes: Collection[str] = PLANES,
) -> Partial:
    """Return the wanted rows in buckets, keyed by step // bucket_steps."""
    shift, gone = thinned.grain(connection, wanted.run_id)
    everywhere = np.arange(wanted.num_rows)
    parts: list[tuple[Rows, Partial]] = []
    for whole in segments:
        coarse, segment = thinned.split(whole, gone)
        if coarse is not None:
            parts += thinned.parts(
                connection, wanted, coarse, bucket_steps, shift=shift or 0, planes=planes
            )
        if segment is None:
            continue
        raw = [segment]
        if shift is not None and bucket_steps >= tiles.FANOUT << shift:
            dirty = _dirty_chunks(connection, wanted, segment, shift)
            raw = _spans(dirty, segment, tiles.TILE_STEPS << shift)
            parts += [
                (
                    block.rows,
                    tile_blocks.rollups(
                        connection,
                        wanted,
                        segment,
                        block,
                        shift=shift,
                        bucket_steps=bucket_steps,
                        dirty=dirty,
                        planes=planes,
                    ),
                )
                for block in wanted.blocks
            ]
        for span in raw:
            for partial in _values(connection, wanted, span, bucket_steps, planes):
                parts.append((everywhere, partial))
    return downsampling.merged(wanted.num_rows, parts, planes)


def _dirty_chunks(
    connection: Connection, wanted: Wanted, segment: AttemptSegment, shift: int
) -> npt.NDArray[np.int64]:
    """Return the chunks that rollups cannot answer: with batches in the tail, or cut."""
    chunk = tiles.TILE_STEPS << shift
    layouts = {one.layout.number for one in wanted.picked}
    steps = tail.measured_steps(connection, wanted.run_id, segment, layouts)
    cut = [edge // chunk for edge in (segment.low, segment.high) if edge % chunk]
    return np.unique(np.concatenate([steps // chunk, np.array(cut, np.int64)]))


def _spans(chunks: Steps, segment: AttemptSegment, chunk: int) -> list[AttemptSegment]:
    """Return the steps of adjacent chunks as spans within the segment."""
    spans: list[AttemptSegment] = []
    for number in chunks.tolist():
        low, high = max(number * chunk, segment.low), min((number + 1) * chunk, segment.high)
        if spans and spans[-1].high == low:
            low = spans.pop().low
        spans.append(AttemptSegment(segment.attempt, low, high))
    return spans


def _values(
    connection: Connection,
    wanted: Wanted,
    span: AttemptSegment,
    bucket_steps: int,
    planes: Collection[str],
) -> Iterator[Partial]:
    """Yield the span's values reduced to buckets, in slices of bounded size."""
    for steps, values in values_of(connection, wanted, span):
        yield Partial.of_groups(steps // bucket_steps, values, planes)


def values_of(
    connection: Connection, wanted: Wanted, span: AttemptSegment
) -> Iterator[tuple[Steps, Floats]]:
    """Yield a span's measured steps [N] and exact values [R, N], in slices of bounded size.

    The steps are read at once: 8 bytes per step of the span.
    """
    layouts = {one.layout.number for one in wanted.picked}
    found = tile_blocks.steps_between(connection, wanted, span) or []
    found.append(tail.measured_steps(connection, wanted.run_id, span, layouts))
    steps = tail.distinct(found, span.low, span.high)
    num = max(1_024, SLICE_VALUES // max(wanted.num_rows, 1))
    for start in range(0, len(steps), num):
        some = steps[start : start + num]
        yield some, values_at(connection, wanted, span.attempt, some)


def values_at(connection: Connection, wanted: Wanted, attempt: int, steps: Steps) -> Floats:
    """Return the values [R, N] of an attempt at ``steps`` [N], N >= 1, ABSENT if none."""
    values = np.full((wanted.num_rows, len(steps)), ABSENT, np.float32)
    tile_blocks.read_over(connection, wanted, attempt, steps, values)
    tail.read_over(connection, wanted.run_id, attempt, wanted.picked, steps, values)
    return values
