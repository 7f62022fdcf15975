"""Verification: every tile, rollup and batch of every run is compared with its checksum.

Read in key order, some rows per snapshot, so no snapshot gets old and ingest is not held up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.series import damage, stored_tiles
from snc_service.store.sql.series.checksums import BLOCK_BYTES, BatchPlace, TileKey, broken_blocks
from snc_service.store.sql.series.layouts import LayerBook, Layout
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.types import StoreDamaged, StoreUnavailable, Verified

TILES_AT_ONCE = 128  # of 35 KB
BATCHES_AT_ONCE = 16
RUNS_AT_ONCE = 1_000


@dataclass(frozen=True)
class BrokenTile:
    """A damaged tile or rollup."""

    key: TileKey
    step0: int
    error: StoreDamaged


@dataclass(frozen=True)
class BrokenBatch:
    """A batch with damaged blocks; ``layout`` is None if it has none, so nothing can be kept."""

    place: BatchPlace
    layout: Layout | None
    blocks: tuple[int, ...]
    error: StoreDamaged


@dataclass
class Tally:
    """What was looked at so far."""

    tiles: int = 0
    batches: int = 0
    unchecked: int = 0


Broken = BrokenTile | BrokenBatch


def verify(database: Database, book: LayerBook) -> Verified:
    """See `Damages.verify`."""
    tally, found = Tally(), []
    problems = database.problems()
    try:
        for run_id in runs_of(database):
            found += [each.error for each in broken(database, book, run_id, tally)]
    except StoreUnavailable:
        if not problems:
            raise
    return Verified(
        tiles=tally.tiles,
        batches=tally.batches,
        unchecked=tally.unchecked,
        damaged=tuple(found),
        engine=tuple(problems),
    )


def runs_of(database: Database) -> Iterator[int]:
    """Yield the numbers of all runs."""
    last = -1
    while True:
        with database.read() as connection:
            rows = connection.execute(
                "select run_id from run where run_id > ? order by run_id limit ?",
                (last, RUNS_AT_ONCE),
            ).fetchall()
        yield from (int(run_id) for (run_id,) in rows)
        if len(rows) < RUNS_AT_ONCE:
            return
        last = rows[-1][0]


def broken(database: Database, book: LayerBook, run_id: int, tally: Tally) -> Iterator[Broken]:
    """Yield what is damaged of a run."""
    yield from _broken_tiles(database, run_id, tally)
    yield from _broken_batches(database, book, run_id, tally)


def _broken_tiles(database: Database, run_id: int, tally: Tally) -> Iterator[BrokenTile]:
    last: tuple[int, ...] = (-1, -1, -1, -1, -1)
    while True:
        with database.read() as connection:
            rows = connection.execute(
                f"select attempt, metric, level, block, {stored_tiles.COLUMNS} from tile "
                "where run_id = ? and (attempt, metric, level, block, step0) > (?, ?, ?, ?, ?) "
                "order by attempt, metric, level, block, step0 limit ?",
                (run_id, *last, TILES_AT_ONCE),
            ).fetchall()
            found = []
            for attempt, metric, level, block, *columns in rows:
                key, tile = TileKey(run_id, attempt, metric, level, block), StoredTile(*columns)
                tally.tiles += 1
                tally.unchecked += tile.crc is None
                is_sound = tile.crc is not None and tile.is_intact(key)
                error = None if is_sound else _of_tile(connection, key, tile)
                if error is not None:
                    found.append(BrokenTile(key, tile.step0, error))
        yield from found
        if len(rows) < TILES_AT_ONCE:
            return
        last = tuple(rows[-1][:5])


def _of_tile(connection: Connection, key: TileKey, tile: StoredTile) -> StoreDamaged | None:
    """Return what is wrong with a tile that its checksum does not clear."""
    try:
        if key.level:
            stored_tiles.entries(connection, key, tile, 1)
        else:
            stored_tiles.values(connection, key, tile)
    except StoreDamaged as error:
        return error
    return None


def _broken_batches(
    database: Database, book: LayerBook, run_id: int, tally: Tally
) -> Iterator[BrokenBatch]:
    last = -1
    while True:
        with database.read() as connection:
            layouts = {layout.number: layout for layout in book.layouts(connection, run_id)}
            rows = connection.execute(
                "select id, attempt, layout, step0, step1, n, steps, crcs, v from tail "
                "where run_id = ? and id > ? order by id limit ?",
                (run_id, last, BATCHES_AT_ONCE),
            ).fetchall()
            found = []
            for *numbers, steps, crcs, data in rows:
                place = BatchPlace(run_id, *numbers)
                tally.batches += 1
                tally.unchecked += crcs is None
                count = -(-len(data) // BLOCK_BYTES) if isinstance(data, bytes) else 1
                blocks = [] if crcs is None else broken_blocks(place, steps, 0, data, crcs, count)
                layout = layouts.get(place.layout)
                if blocks or layout is None:
                    error = damage.of_batch(connection, place, layout, blocks)
                    found.append(BrokenBatch(place, layout, tuple(blocks), error))
        yield from found
        if len(rows) < BATCHES_AT_ONCE:
            return
        last = rows[-1][0]
