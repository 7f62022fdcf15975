"""Rows of tiles and rollups: verified, then decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from snc_service.store import tiles
from snc_service.store.downsampling import PLANES, Partial
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series import checksums, damage
from snc_service.store.sql.series.checksums import TileKey
from snc_service.store.sql.series.tail import unpack_steps
from snc_service.store.types import Floats, Steps

# What decoders raise on foreign bytes. Rows of earlier releases have no checksum to say so first.
UNREADABLE = (ValueError, RuntimeError, zlib.error, struct.error)


class StoredTile(NamedTuple):
    """The columns `COLUMNS` of a row. ``crc`` is None if an earlier release wrote it."""

    step0: int
    step1: int
    n: int
    form: int
    steps: bytes | None
    data: bytes
    crc: int | None

    def is_intact(self, key: TileKey) -> bool:
        """Return whether the row is what was stored, as far as its checksum can tell."""
        if self.crc is None:
            return True
        try:
            found = checksums.of_tile(
                key, self.step0, self.step1, self.n, self.form, self.steps, self.data
            )
        except (struct.error, TypeError):  # SQLite stores the types of a row with it
            return False
        return found == self.crc


COLUMNS = "step0, step1, n, enc, steps, v, crc"


def values(connection: Connection, key: TileKey, row: StoredTile) -> tuple[Steps, Floats]:
    """Return the steps [n] and values [R, n] of a tile. Raises `StoreDamaged`."""
    if not row.is_intact(key):
        raise damage.of_tile(connection, key, row.step0, row.step1)
    try:
        steps = unpack_steps(row.step0, row.step1, row.n, row.steps)
        return steps, tiles.decode(row.form, row.data, row.n)
    except tiles.FormUnknown:
        raise
    except UNREADABLE as error:
        raise damage.of_tile(connection, key, row.step0, row.step1) from error


def entries(
    connection: Connection,
    key: TileKey,
    row: StoredTile,
    entry_steps: int,
    planes: Collection[str] = PLANES,
) -> Partial:
    """Return the entries of a rollup, keyed by their first step. Raises `StoreDamaged`."""
    if not row.is_intact(key):
        raise damage.of_tile(connection, key, row.step0, row.step1)
    try:
        keys = row.step0 + entry_steps * np.arange(row.n, dtype=np.int64)
        return tiles.decode_rollup(row.data, keys, planes)
    except tiles.FormUnknown:
        raise
    except UNREADABLE as error:
        raise damage.of_tile(connection, key, row.step0, row.step1) from error
