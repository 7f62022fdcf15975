"""Rollups under construction: pieces of 32 entries that merge into tiles of 1024.

A complete tile of one level is one piece of the next. So every level has full tiles and at most 31
loose pieces per incomplete tile: reads stay bounded, and only a late value rewrites a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from snc_service.store import tiles
from snc_service.store.downsampling import Partial, joined, merged
from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.series import checksums, stored_tiles
from snc_service.store.sql.series.checksums import TileKey
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.types import Floats, Steps

LEVELS = 2
_KEY = "run_id = ? and attempt = ? and metric = ? and level = ? and block = ?"


@dataclass
class Changes:
    """Tile rows to delete (by key) and to insert, collected before their transaction."""

    deleted: list[tuple[int, ...]] = field(default_factory=list)
    inserted: list[Row] = field(default_factory=list)

    def put(self, place: TilePlace, level: int, steps: tuple[int, int, int], form: Row) -> None:
        """Replace the row at (place, level, first step)."""
        first, last, n = steps
        key = (place.run_id, place.attempt, place.metric, level, place.block, first)
        self.deleted.append(key)
        enc, packed, data = form
        crc = checksums.of_tile(TileKey(*key[:5]), first, last, n, enc, packed, data)
        self.inserted.append((*key, last, n, enc, packed, data, crc))

    def apply(self, connection: Connection) -> None:
        """Execute the changes."""
        connection.executemany(f"delete from tile where {_KEY} and step0 = ?", self.deleted)
        connection.executemany(
            "insert into tile (run_id, attempt, metric, level, block, step0, step1, n, enc, "
            "steps, v, crc) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.inserted,
        )


@dataclass(frozen=True)
class TilePlace:
    """A block of layers of one metric in one attempt, and the run's measuring interval."""

    run_id: int
    attempt: int
    metric: int
    block: int
    shift: int


def add(
    connection: Connection,
    changes: Changes,
    place: TilePlace,
    low: int,
    steps: Steps,
    values: Floats,
    *,
    alone: bool,
) -> None:
    """Roll up the chunk that begins at step ``low``: ``values`` [R, N] of ``steps`` [N].

    ``alone``: there was no tile to merge them into. If there are rollups nevertheless, the chunk
    was thinned, and the values are added to those of the rollups.
    """
    entries = Partial.of_groups((steps - low) // (tiles.FANOUT << place.shift), values)
    for level in range(1, LEVELS + 1):
        piece = _piece(entries, low, tiles.FANOUT**level << place.shift)
        if alone and level == 1:
            piece = _added_to_what_was(connection, place, piece)
        tile = _put_piece(connection, changes, place, level, piece)
        if tile is None:
            return
        low = int(tile.keys[0])
        entries = tile.grouped((tile.keys - low) // (tiles.FANOUT ** (level + 1) << place.shift))


def _piece(known: Partial, low: int, entry: int) -> Partial:
    """Return `FANOUT` entries of ``entry`` steps from ``low`` on; keys of ``known`` are indexes."""
    keys = low + entry * np.arange(tiles.FANOUT, dtype=np.int64)
    piece = Partial.hollow(keys, known.num_rows)
    for name, plane in known.planes.items():
        piece.planes[name][:, known.keys] = plane
    return piece


def _added_to_what_was(connection: Connection, place: TilePlace, piece: Partial) -> Partial:
    """Return a piece of the first level merged with the stored entries at the same steps."""
    low, high = int(piece.keys[0]), int(piece.keys[-1])
    row = connection.execute(
        f"select step0 from tile where {_KEY} and step0 <= ? and step1 >= ?",
        (*_key(place, 1), low, high),
    ).fetchone()
    if row is None:
        return piece
    was = _load(connection, place, 1, tiles.FANOUT << place.shift, row[0])
    both = _equal_rows([was.only((was.keys >= low) & (was.keys <= high)), piece])
    everywhere = np.arange(both[0].num_rows)
    return merged(len(everywhere), [(everywhere, part) for part in both])


def _put_piece(
    connection: Connection, changes: Changes, place: TilePlace, level: int, piece: Partial
) -> Partial | None:
    """Store a piece at its level; return the tile of that level if the piece completes it."""
    entry = tiles.FANOUT**level << place.shift
    low = int(piece.keys[0])
    start = low // (tiles.TILE_STEPS * entry) * (tiles.TILE_STEPS * entry)
    stored = connection.execute(
        f"select step0, n from tile where {_KEY} and step0 >= ? and step0 < ?",
        (*_key(place, level), start, start + tiles.TILE_STEPS * entry),
    ).fetchall()
    others = [(step0, n) for step0, n in stored if step0 != low or n == tiles.TILE_STEPS]
    if len(others) < tiles.FANOUT - 1 and all(n < tiles.TILE_STEPS for _, n in others):
        _put(changes, place, level, piece)
        return None
    parts = [_load(connection, place, level, entry, step0) for step0, _ in others]
    # In an existing tile the piece of a late value replaces its entries.
    parts = [part.only((part.keys < low) | (part.keys > piece.keys[-1])) for part in parts]
    whole = joined(_equal_rows([*parts, piece]))
    whole = whole.ordered(np.argsort(whole.keys))
    changes.deleted += [(*_key(place, level), step0) for step0, _ in stored]
    _put(changes, place, level, whole)
    return whole


def _put(changes: Changes, place: TilePlace, level: int, entries: Partial) -> None:
    n = len(entries.keys)
    first = int(entries.keys[0])
    last = first + n * (tiles.FANOUT**level << place.shift) - 1
    changes.put(place, level, (first, last, n), (tiles.ROLLUP, None, tiles.encode_rollup(entries)))


def _load(connection: Connection, place: TilePlace, level: int, entry: int, step0: int) -> Partial:
    key = _key(place, level)
    row = connection.execute(
        f"select {stored_tiles.COLUMNS} from tile where {_KEY} and step0 = ?", (*key, step0)
    ).fetchone()
    return stored_tiles.entries(connection, key, StoredTile(*row), entry)


def _equal_rows(parts: list[Partial]) -> list[Partial]:
    """Return parts with equally many rows: the block may have got layers in between."""
    most = max(part.num_rows for part in parts)
    return [part.rows_taken(np.arange(most)) for part in parts]


def _key(place: TilePlace, level: int) -> TileKey:
    return TileKey(place.run_id, place.attempt, place.metric, level, place.block)
