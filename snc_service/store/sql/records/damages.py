"""Known damage: one row per damaged place, until it is repaired or its run is deleted."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.records import events, runs
from snc_service.store.types import Event, StoreDamaged


def record(connection: Connection, error: StoreDamaged, now: float) -> None:
    """Add a place, and an event to its run; nothing if it is known. Raises `RunUnknown`."""
    run_id = runs.lock(connection, error.run)
    new = connection.execute(
        "insert into damage (run_id, place, at, detail) values (?, ?, ?, ?) "
        "on conflict (run_id, place) do nothing",
        (run_id, error.place, now, str(error)),
    ).rowcount
    if new:
        event = Event(
            step=max(error.steps[0], 0),
            rule="damaged",
            severity="critical",
            message=str(error),
            layer=error.layers[0] if error.layers else None,
            layers=error.num_layers,
        )
        events.append_to(connection, run_id, error.run, [event], now)


def count(connection: Connection) -> int:
    """Return the number of known places."""
    (number,) = connection.execute("select count(*) from damage").fetchone()
    return int(number)


def forget(connection: Connection, run_id: int, place: str) -> None:
    """Remove a place that is damaged no more."""
    connection.execute("delete from damage where run_id = ? and place = ?", (run_id, place))
