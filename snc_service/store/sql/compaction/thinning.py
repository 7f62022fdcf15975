"""Thinning: drops the exact values of runs that ended long ago, and keeps their rollups.

Rollups hold min, max and mean of every 32 measured steps in a tenth of the bytes. The row in
``thinned`` holds the step below which a run has only rollups. It is written before the first tile
is dropped, so no reader sees a part of the tiles.
"""

from __future__ import annotations

from contextlib import suppress

from snc_service.store import tiles
from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.records import audit, runs
from snc_service.store.sql.records.deletion import OLD, RETENTION, SLICE_ROWS
from snc_service.store.types import RunUnknown


def thin(database: Database, before: float, now: float) -> list[str]:
    """Thin runs that are finished, failed or silent and were last updated before ``before``.

    Returns the ids of the thinned runs. A crash in between leaves tiles that are never read; the
    next call continues.
    """
    with database.read() as connection:
        old = connection.execute(
            f"select run from run where {OLD} order by updated_at", (before,)
        ).fetchall()
    thinned = []
    for (run,) in old:
        with suppress(RunUnknown):  # deleted in between
            if _thin_run(database, run, before, now):
                thinned.append(str(run))
    return thinned


def _thin_run(database: Database, run: str, before: float, now: float) -> bool:
    with database.read() as connection:
        if not _is_due(connection, runs.number(connection, run), before):
            return False
    with database.write(frees=True) as connection:
        run_id = runs.lock(connection, run)
        if not _is_due(connection, run_id, before):
            return False
        _mark(connection, run_id)
        audit.append(connection, "run_thinned", run, author=RETENTION, now=now)
    while _drop_slice(database, run_id):
        database.reclaim()
    return True


def _is_due(connection: Connection, run_id: int, before: float) -> bool:
    """Return whether a run is old and was folded further than it was thinned."""
    row = connection.execute(
        f"select run_id from run where run_id = ? and interval_shift is not null and {OLD}",
        (run_id, before),
    ).fetchone()
    if row is None:
        return False
    known = connection.execute(
        "select below, whole from thinned where run_id = ?", (run_id,)
    ).fetchone()
    return known is None or not known[1] or known[0] < _end(connection, run_id)


def _end(connection: Connection, run_id: int) -> int:
    """Return the first step after the last chunk that the run has reached."""
    last_step, shift = connection.execute(
        "select last_step, interval_shift from run where run_id = ?", (run_id,)
    ).fetchone()
    chunk = tiles.TILE_STEPS << shift
    return int((last_step // chunk + 1) * chunk)


def _mark(connection: Connection, run_id: int) -> None:
    connection.execute(
        "insert into thinned (run_id, below, whole) values (?, ?, 0) on conflict (run_id) "
        "do update set below = excluded.below, whole = 0",
        (run_id, _end(connection, run_id)),
    )
    # A process that is folding the run has read tiles about to be dropped; it must restart.
    connection.execute(
        "update run set fold_epoch = fold_epoch + 1, version = version + 1 where run_id = ?",
        (run_id,),
    )


def _drop_slice(database: Database, run_id: int) -> bool:
    """Drop some tiles of exact values; return whether more may be left."""
    with database.write(frees=True) as connection:
        if not runs.lock_number(connection, run_id):
            return False
        row = connection.execute("select below from thinned where run_id = ?", (run_id,)).fetchone()
        key = "attempt, metric, level, block, step0"
        dropped = connection.execute(
            f"delete from tile where run_id = ? and ({key}) in (select {key} from tile "
            "where run_id = ? and level = 0 and step0 < ? limit ?)",
            (run_id, run_id, row[0], SLICE_ROWS),
        ).rowcount
        if not dropped:
            connection.execute("update thinned set whole = 1 where run_id = ?", (run_id,))
        return dropped > 0
