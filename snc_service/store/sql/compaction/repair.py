"""Repair: drops what does not match its checksum, and nothing else.

A tile goes; its rollups stay. A rollup is made anew from the tiles under it. Of a batch in the tail
the damaged blocks become "not measured"; if nothing of it is intact, the batch goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from snc_service.store import tiles
from snc_service.store.sql.compaction import rollups
from snc_service.store.sql.compaction.rollups import Changes, TilePlace
from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.queries import thinned, verification
from snc_service.store.sql.queries.verification import Broken, BrokenBatch, BrokenTile, Tally
from snc_service.store.sql.records import audit, damages, runs
from snc_service.store.sql.series import stored_tiles, tail, tail_summary
from snc_service.store.sql.series.checksums import BLOCK_BYTES
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.types import Repaired, StoreDamaged
from snc_service.wire import ABSENT

AUTHOR = "repair"


def repair(database: Database, book: LayerBook, now: float) -> Iterator[Repaired]:
    """See `Damages.repair`."""
    database.mend()
    for run_id in verification.runs_of(database):
        found = list(verification.broken(database, book, run_id, Tally()))
        # First everything damaged goes, so that nothing of it is in the way of new rollups.
        done = [_in_turn(database, broken, _drop, now) for broken in found]
        for place, broken in enumerate(found):
            if isinstance(broken, BrokenTile) and broken.key.level:
                done[place] = _in_turn(database, broken, _rolled_up_anew, now)
            yield Repaired(broken.error, done[place])


def _in_turn(
    database: Database, broken: Broken, change: Callable[[Connection, Any], str], now: float
) -> str:
    """Do one change in a transaction of its own; return what was done."""
    run_id = broken.key.run_id if isinstance(broken, BrokenTile) else broken.place.run_id
    with database.write(frees=True) as connection:
        if not runs.lock_number(connection, run_id):
            return "the run was deleted meanwhile"
        done = change(connection, broken)
        # Whoever folds the run has read what is gone; whoever shows it has an old version.
        connection.execute(
            "update run set fold_epoch = fold_epoch + 1, version = version + 1 where run_id = ?",
            (run_id,),
        )
        detail = f"{broken.error.place}: {done}"
        audit.append(
            connection, "run_repaired", broken.error.run, author=AUTHOR, now=now, detail=detail
        )
        damages.forget(connection, run_id, broken.error.place)
    return done


def _drop(connection: Connection, broken: Broken) -> str:
    if isinstance(broken, BrokenBatch):
        return _drop_blocks(connection, broken)
    connection.execute(
        "delete from tile where run_id = ? and attempt = ? and metric = ? and level = ? "
        "and block = ? and step0 = ?",
        (*broken.key, broken.step0),
    )
    return "dropped" + (
        "; min, max and mean of every 32 measured steps stay" * (not broken.key.level)
    )


def _drop_blocks(connection: Connection, broken: BrokenBatch) -> str:
    place, layout = broken.place, broken.layout
    row = connection.execute(
        "select steps, v from tail where run_id = ? and id = ?", (place.run_id, place.id)
    ).fetchone()
    if row is None:
        return "gone already"
    packed, data = row
    width = len(layout.layers) * len(layout.metrics) + len(layout.scalars) if layout else 0
    count = -(-len(data) // BLOCK_BYTES)
    whole = layout is not None and len(data) == 4 * place.n * width and len(broken.blocks) < count
    if layout is None or not whole:
        connection.execute("delete from tail where run_id = ? and id = ?", (place.run_id, place.id))
        tail_summary.summarise(connection, place.run_id)
        return "dropped"
    values = np.frombuffer(data, "<f4").copy()
    size = BLOCK_BYTES // values.itemsize
    for block in broken.blocks:
        values[block * size : (block + 1) * size] = ABSENT
    steps = tail.unpack_steps(place.step0, place.step1, place.n, packed)
    tail.replace(
        connection, place.run_id, place.id, place.attempt, place.layout, steps,
        values.reshape(width, place.n),
    )  # fmt: skip
    return "these values are not measured now; the rest of the batch stays"


def _rolled_up_anew(connection: Connection, broken: BrokenTile) -> str:
    """Roll up again what exact values there are under a dropped rollup."""
    key = broken.key
    shift, gone = thinned.grain(connection, key.run_id)
    place = TilePlace(key.run_id, key.attempt, key.metric, key.block, shift or 0)
    chunk = tiles.TILE_STEPS << place.shift
    lows = connection.execute(
        "select step0 from tile where run_id = ? and attempt = ? and metric = ? and level = 0 "
        "and block = ? and step0 >= ? and step0 <= ? order by step0",
        (*key[:3], key.block, broken.step0 // chunk * chunk, broken.error.steps[1]),
    ).fetchall()
    num_tiles = 0
    for (step0,) in lows:
        row = connection.execute(
            f"select {stored_tiles.COLUMNS} from tile where run_id = ? and attempt = ? and "
            "metric = ? and level = 0 and block = ? and step0 = ?",
            (*key[:3], key.block, step0),
        ).fetchone()
        # What is damaged itself was, or will be, found by itself.
        with suppress(StoreDamaged):
            steps, values = stored_tiles.values(connection, key._replace(level=0), StoredTile(*row))
            changes = Changes()
            low = step0 // chunk * chunk
            rollups.add(connection, changes, place, low, steps, values, alone=False)
            changes.apply(connection)
            num_tiles += 1
    if gone > broken.step0:
        return "dropped; the exact values under it were thinned, so it is lost"
    return f"made anew from {num_tiles} tiles"
