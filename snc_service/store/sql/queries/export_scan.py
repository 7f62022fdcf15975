"""A scan: all stored values of a run, in pieces, each from its own snapshot.

Pieces divide the run by attempt, metric, group of layers and range of steps, so no value is in two
of them, and folding does not change the content of a piece. So the pieces need no common snapshot,
and a slow reader of an export holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.store import tiles
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.queries import thinned
from snc_service.store.sql.queries.history import values_of
from snc_service.store.sql.records import runs
from snc_service.store.sql.series import tail, tile_blocks
from snc_service.store.sql.series.attempts import Attempts, AttemptSegment
from snc_service.store.sql.series.layouts import LayerBook, Layout, metric_numbers
from snc_service.store.sql.series.selection import Wanted, layers_of, scalar_of
from snc_service.store.types import Extent, Piece, RunUnknown

LAYERS_AT_ONCE = 16 * tiles.BLOCK_LAYERS
PIECE_VALUES = LAYERS_AT_ONCE * tiles.TILE_STEPS  # of a run with a regular measuring interval
MOST_STEPS = 2**20  # step numbers in memory at once

# Opens a transaction with a snapshot that is not older than any before.
Reads: TypeAlias = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True)
class ScanPart:
    """One metric of some layers (or one scalar) in one attempt."""

    kind: str
    metric: str
    indexes: npt.NDArray[np.int64]
    layers: tuple[str, ...] | None
    segment: AttemptSegment


@dataclass
class Plan:
    """The extent of a scan, fixed at its start, so that the scan of a growing run ends."""

    run: str
    run_id: int
    layouts: list[Layout]
    parts: list[ScanPart] = field(default_factory=list)


def scan(reads: Reads, book: LayerBook, run: str, extent: Extent) -> Iterator[Piece]:
    """See `Histories.scan`."""
    with reads() as connection:
        plan = _plan(connection, book, run, extent)
    return (piece for part in plan.parts for piece in _pieces(reads, plan, part))


def _plan(connection: Connection, book: LayerBook, run: str, extent: Extent) -> Plan:
    run_id = runs.number(connection, run)
    thinned.check_whole(connection, run_id, extent.from_step)
    plan = Plan(run, run_id, book.layouts(connection, run_id))
    (last_step,) = connection.execute(
        "select last_step from run where run_id = ?", (run_id,)
    ).fetchone()
    end = -1 if last_step is None else last_step
    end = end if extent.to_step is None else min(end, extent.to_step)
    groups = _groups(connection, book, run_id, extent)
    names = [
        (kind, name)
        for kind, name in sorted(metric_numbers(connection, run_id))
        if extent.metrics is None or name in extent.metrics
    ]
    for attempt, first in sorted(Attempts.load(connection, run_id).first_steps.items()):
        segment = AttemptSegment(attempt, max(first, extent.from_step), end + 1)
        if segment.low >= segment.high or extent.attempt not in (None, attempt):
            continue
        for kind, name in names:
            if kind == "layer":
                plan.parts += [ScanPart(kind, name, *group, segment) for group in groups]
            elif extent.layers is None:
                plan.parts.append(ScanPart(kind, name, np.zeros(1, np.int64), None, segment))
    return plan


def _groups(
    connection: Connection, book: LayerBook, run_id: int, extent: Extent
) -> list[tuple[npt.NDArray[np.int64], tuple[str, ...]]]:
    """Return the layers' indexes and names in model order, in groups that keep a piece small."""
    specs = book.specs(connection, run_id)
    indexes = np.arange(len(specs))
    if extent.layers is not None:
        indexes = np.unique(np.array(book.indexes(connection, run_id, extent.layers), np.int64))
    starts = range(0, len(indexes), LAYERS_AT_ONCE)
    some = [indexes[start : start + LAYERS_AT_ONCE] for start in starts]
    return [(group, tuple(specs[index].name for index in group.tolist())) for group in some]


def _pieces(reads: Reads, plan: Plan, part: ScanPart) -> Iterator[Piece]:
    """Yield a part's pieces in the order of steps."""
    at = part.segment.low
    while at < part.segment.high:
        with reads() as connection:
            _check(connection, plan)
            wanted = _wanted(connection, plan, part)
            span = _next_span(connection, wanted, replace(part.segment, low=at))
            if span is None:
                return
            # The rest of a span that was too large for one piece is searched again.
            steps, values = next(values_of(connection, wanted, span), (None, None))
        at = span.high
        if steps is not None and values is not None:
            at = int(steps[-1]) + 1
            yield Piece(span.attempt, part.metric, part.layers, steps, values)


def _check(connection: Connection, plan: Plan) -> None:
    """Raise `RunUnknown` if the run was deleted: its rows vanish slice by slice."""
    row = connection.execute("select run_id from run where run_id = ?", (plan.run_id,)).fetchone()
    if row is None:
        raise RunUnknown(f"run {plan.run!r} was deleted meanwhile")


def _wanted(connection: Connection, plan: Plan, part: ScanPart) -> Wanted:
    if part.kind == "run":
        return scalar_of(connection, plan.run_id, plan.layouts, part.metric)
    return layers_of(connection, plan.run_id, plan.layouts, part.metric, part.indexes)


def _next_span(
    connection: Connection, wanted: Wanted, rest: AttemptSegment
) -> AttemptSegment | None:
    """Return whole chunks from the next measured step on, enough for about one piece."""
    shift, _ = thinned.grain(connection, wanted.run_id)
    found = [
        tail.next_step(connection, wanted.run_id, rest, wanted.counted),
        tile_blocks.next_step(connection, wanted, rest, shift or 0),
    ]
    first = min((step for step in found if step is not None), default=rest.high)
    if first >= rest.high:
        return None
    chunk = tiles.TILE_STEPS << (shift or 0)
    most = min(PIECE_VALUES // (wanted.num_rows * tiles.TILE_STEPS), MOST_STEPS // chunk)
    high = (first // chunk + max(most, 1)) * chunk
    return AttemptSegment(rest.attempt, first, min(high, rest.high))
