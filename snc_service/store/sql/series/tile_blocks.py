"""Folded history: tiles of values and their rollups, read block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from snc_service.store import tiles
from snc_service.store.downsampling import PLANES, Partial, joined
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series import stored_tiles
from snc_service.store.sql.series.attempts import AttemptSegment
from snc_service.store.sql.series.checksums import TileKey
from snc_service.store.sql.series.selection import LayerBlock, Wanted
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.sql.series.tail import put_over, unpack_steps
from snc_service.store.types import Floats, Steps

_WHERE = "where run_id = ? and attempt = ? and metric = ? and level = ? and block = ?"
_STEPS = f"select step0, step1, n, steps from tile {_WHERE}"


def steps_between(
    connection: Connection, wanted: Wanted, segment: AttemptSegment, most: int | None = None
) -> list[Steps] | None:
    """Return the measured steps of the tiles that touch a segment, one array per tile.

    None as soon as one block has more than ``most`` of them within the segment.
    """
    found: list[Steps] = []
    for block in wanted.blocks:
        num = 0
        rows = connection.execute(
            f"{_STEPS} and step0 < ? and step1 >= ? order by step0",
            (*_key(wanted, segment, 0, block), segment.high, segment.low),
        )
        for row in rows:
            steps = unpack_steps(*row)
            found.append(steps[(steps >= segment.low) & (steps < segment.high)])
            num += len(found[-1])
            if most is not None and num > most:
                return None
    return found


def next_step(
    connection: Connection, wanted: Wanted, span: AttemptSegment, shift: int
) -> int | None:
    """Return a step at or after ``span.low`` and not after the first measured one.

    None if no tile has any. Only the tile around ``span.low`` may begin before it; its first step
    counts as ``span.low``.
    """
    chunk = tiles.TILE_STEPS << shift
    found: list[int] = []
    for block in wanted.blocks:
        row = connection.execute(
            f"select step0 from tile {_WHERE} and step0 >= ? and step1 >= ? order by step0 limit 1",
            (*_key(wanted, span, 0, block), span.low // chunk * chunk, span.low),
        ).fetchone()
        if row is not None:
            found.append(max(int(row[0]), span.low))
    return min(found, default=None)


def ends(connection: Connection, wanted: Wanted, segment: AttemptSegment) -> list[int]:
    """Return the first and the last step within the segment of each block's tiles."""
    found: list[int] = []
    for block in wanted.blocks:
        for order in ("asc", "desc"):
            rows = connection.execute(
                f"{_STEPS} and step0 < ? and step1 >= ? order by step0 {order}",
                (*_key(wanted, segment, 0, block), segment.high, segment.low),
            )
            # A tile that touches the segment may have no steps within it.
            for row in rows:
                steps = unpack_steps(*row)
                steps = steps[(steps >= segment.low) & (steps < segment.high)]
                if len(steps):
                    found.append(int(steps[0] if order == "asc" else steps[-1]))
                    break
    return found


def rollup_ends(
    connection: Connection, wanted: Wanted, segment: AttemptSegment
) -> Iterator[tuple[int, int]]:
    """Yield the first and the last step of the finest rollups of each block in a segment."""
    for block in wanted.blocks:
        found = [
            connection.execute(
                f"select step0, step1 from tile {_WHERE} and step0 < ? and step1 >= ? "
                f"order by step0 {order} limit 1",
                (*_key(wanted, segment, 1, block), segment.high, segment.low),
            ).fetchone()
            for order in ("asc", "desc")
        ]
        if found[0] is not None:
            yield int(found[0][0]), int(found[1][1])


def read_over(
    connection: Connection, wanted: Wanted, attempt: int, steps: Steps, values: Floats
) -> None:
    """Lay the tiles' values over ``values`` [R, N] of ``steps`` [N]."""
    span = AttemptSegment(attempt, int(steps[0]), int(steps[-1]) + 1)
    for block in wanted.blocks:
        rows = connection.execute(
            f"select {stored_tiles.COLUMNS} from tile {_WHERE} and step0 < ? and step1 >= ?",
            (*_key(wanted, span, 0, block), span.high, span.low),
        )
        for row in rows.fetchall():
            key = _key(wanted, span, 0, block)
            tile_steps, tile = stored_tiles.values(connection, key, StoredTile(*row))
            at = np.searchsorted(steps, tile_steps)
            inside = (at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == tile_steps)
            known = block.lanes < len(tile)
            new = tile[block.lanes[known]]
            columns = at[inside]
            put_over(values, block.rows[known], columns, new if inside.all() else new[:, inside])


def rollups(
    connection: Connection,
    wanted: Wanted,
    segment: AttemptSegment,
    block: LayerBlock,
    *,
    shift: int,
    bucket_steps: int,
    dirty: Steps,
    planes: Collection[str] = PLANES,
) -> Partial:
    """Return a block's rows in buckets, from the coarsest rollups that nest in them.

    Chunks in ``dirty`` (sorted numbers) are left out. The caller lists there the chunks that the
    segment cuts.
    """
    top = 2 if bucket_steps >= tiles.TILE_STEPS << shift else 1
    gaps = [segment]
    found: list[tuple[int, Partial]] = []
    for level in range(top, 0, -1):
        uncovered: list[AttemptSegment] = []
        for gap in gaps:
            low = gap.low
            for step0, step1, part in _entries(
                connection, wanted, gap, block, level, shift=shift, planes=planes
            ):
                found.append((step0, part))
                if step0 > low:
                    uncovered.append(AttemptSegment(gap.attempt, low, step0))
                low = step1 + 1
            if low < gap.high:
                uncovered.append(AttemptSegment(gap.attempt, low, gap.high))
        gaps = uncovered
    if not found:
        return Partial.empty(len(block.rows), planes)
    most = np.arange(max(part.num_rows for _, part in found))  # the block may have got layers since
    found.sort(key=lambda item: item[0])
    whole = joined([part.rows_taken(most) for _, part in found])
    whole = whole.only(_clean(whole.keys, segment, shift, dirty)).rows_taken(block.lanes)
    return whole.grouped(whole.keys // bucket_steps)


def _entries(
    connection: Connection,
    wanted: Wanted,
    gap: AttemptSegment,
    block: LayerBlock,
    level: int,
    *,
    shift: int,
    planes: Collection[str],
) -> Iterator[tuple[int, int, Partial]]:
    """Yield (first step, last step, entries keyed by their first step) in the order of steps."""
    entry = tiles.FANOUT**level << shift
    key = _key(wanted, gap, level, block)
    rows = connection.execute(
        f"select {stored_tiles.COLUMNS} from tile {_WHERE} and step0 < ? and step1 >= ? "
        "order by step0",
        (*key, gap.high, gap.low),
    )
    for row in map(StoredTile._make, rows.fetchall()):
        yield row.step0, row.step1, stored_tiles.entries(connection, key, row, entry, planes)


def _clean(keys: Steps, segment: AttemptSegment, shift: int, dirty: Steps) -> np.ndarray:
    inside = (keys >= segment.low) & (keys < segment.high)
    if not len(dirty):
        return inside
    return inside & ~np.isin(keys // (tiles.TILE_STEPS << shift), dirty)


def _key(wanted: Wanted, segment: AttemptSegment, level: int, block: LayerBlock) -> TileKey:
    return TileKey(wanted.run_id, segment.attempt, wanted.metric, level, block.number)
