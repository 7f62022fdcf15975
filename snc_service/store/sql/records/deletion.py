"""Deletion: a run disappears at once; its rows are deleted in slices with short locks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress

from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.database.schema import PIECES
from snc_service.store.sql.records import audit, runs
from snc_service.store.types import RunUnknown, StoreUnavailable

log = logging.getLogger(__name__)

SLICE_ROWS = 1_000
RETENTION = "retention"  # the author of deletions by age
OLD = "state in ('finished', 'failed', 'silent') and updated_at < ?"


def delete(
    database: Database, run: str, *, author: str, now: float, before: float | None = None
) -> None:
    """Delete a run: invisible after one transaction, gone from the disk after the last.

    The first decides: whatever stops the others (a crash, a full disk, the run is being folded),
    the run is deleted, and `resume` deletes the invisible rest.
    With ``before``, a run that is active or was updated since counts as unknown. Raises
    `RunUnknown`.
    """
    with database.write(frees=True) as connection:
        run_id = runs.lock_name(connection, run)
        if run_id is None or not runs.lock_number(connection, run_id):
            raise RunUnknown(f"there is no run {run!r}")
        if before is not None and not _is_old(connection, run_id, before):
            raise RunUnknown(f"run {run!r} is active again")
        connection.execute("insert into deleted_run (run_id) values (?)", (run_id,))
        connection.execute("delete from run where run_id = ?", (run_id,))
        connection.execute("delete from run_name where run_id = ?", (run_id,))
        audit.append(connection, "run_deleted", run, author=author, now=now)
    resume_if_possible(database)


def prune(database: Database, before: float) -> list[str]:
    """Delete runs that are finished, failed or silent and were last updated before ``before``."""
    with database.read() as connection:
        old = connection.execute(
            f"select run from run where {OLD} order by updated_at",
            (before,),
        ).fetchall()
    deleted = []
    for (run,) in old:
        with suppress(RunUnknown):  # another process was faster, or the run is active again
            delete(database, run, author=RETENTION, now=time.time(), before=before)
            deleted.append(str(run))
    return deleted


def shrink(database: Database, most_bytes: int) -> list[str]:
    """Delete finished, failed or silent runs, the least recently updated first, down to a size.

    Counts only the bytes of history. Space that the engine has freed but not returned yet must not
    cost another run.
    """
    now = time.time()
    with database.read() as connection:
        sizes: Counter[int] = Counter()
        for part in (
            "select run_id, sum(length(v)) from tile",
            "select run_id, sum(size) from tail",
        ):
            sizes.update(dict(connection.execute(f"{part} group by run_id").fetchall()))
        old = connection.execute(
            f"select run, run_id from run where {OLD} order by updated_at", (now,)
        ).fetchall()
    excess = sizes.total() - most_bytes
    deleted = []
    for run, run_id in old:
        if excess <= 0:
            break
        with suppress(RunUnknown):
            delete(database, run, author=RETENTION, now=now, before=now)
            deleted.append(str(run))
            excess -= sizes[run_id]
    return deleted


def resume_if_possible(database: Database) -> None:
    """Delete the rest of deleted runs now, or say why it has to wait for the next call."""
    try:
        resume(database)
    except StoreUnavailable as error:
        log.warning("deleted runs still take space: %s", error)


def resume(database: Database) -> None:
    """Delete the remaining rows of deleted runs."""
    with database.read() as connection:
        left = connection.execute("select run_id from deleted_run order by run_id").fetchall()
    for (run_id,) in left:
        while True:
            with database.write(frees=True) as connection:
                if not _lock(connection, run_id):
                    break
                if not _delete_slice(connection, run_id):
                    connection.execute("delete from deleted_run where run_id = ?", (run_id,))
                    break
            database.reclaim()


def _is_old(connection: Connection, run_id: int, before: float) -> bool:
    row = connection.execute(
        f"select run_id from run where run_id = ? and {OLD}", (run_id, before)
    ).fetchone()
    return row is not None


def _lock(connection: Connection, run_id: int) -> bool:
    """Lock a deletion, so that one process at a time continues it.

    False: another process finished it, or is folding the run now and must see it whole.
    """
    deletion = connection.execute(
        f"select run_id from deleted_run where run_id = ?{connection.for_update}", (run_id,)
    ).fetchone()
    claim = "select run_id from run_config where run_id = ?"
    there = connection.execute(claim, (run_id,)).fetchone()
    free = connection.execute(f"{claim}{connection.skip_locked}", (run_id,)).fetchone()
    return deletion is not None and free == there


def _delete_slice(connection: Connection, run_id: int) -> bool:
    """Delete up to `SLICE_ROWS` rows; return whether there were any."""
    for table, key in PIECES:
        columns = f"({key})" if "," in key else key
        deleted = connection.execute(
            f"delete from {table} where run_id = ? and {columns} in "
            f"(select {key} from {table} where run_id = ? limit ?)",
            (run_id, run_id, SLICE_ROWS),
        ).rowcount
        if deleted:
            return True
    return False
