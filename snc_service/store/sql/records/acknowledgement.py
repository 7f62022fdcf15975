"""Somebody takes note of a run that went wrong, and with it of its open incidents."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.records import audit, incidents, runs
from snc_service.store.types import Run


def acknowledge(connection: Connection, run: str, author: str, now: float, comment: str) -> Run:
    """Note that somebody knows how the run stands (audit ``run_acknowledged``).

    It counts until the run reports again.
    """
    incidents.lock(connection)  # before the row of the run
    run_id = runs.lock(connection, run)
    opened = connection.execute(
        "select id from incident where run_id = ? and state = 'open' order by id", (run_id,)
    ).fetchall()
    for (incident,) in opened:
        incidents.acknowledge(connection, incident, author, now, comment)
    connection.execute(
        "update run set acknowledged_at = ?, acknowledged_by = ?, version = version + 1 "
        "where run_id = ?",
        (now, author, run_id),
    )
    audit.append(connection, "run_acknowledged", run, author=author, now=now, detail=comment)
    return runs.load(connection, run)
