"""Events: ids grow by one per run; each is counted and queued for alerts when it is stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.types import Event, EventQuery, Page, StoredEvent
from snc_service.wire import Severity

FORGOTTEN_AT_ONCE: Final = 5_000  # so that ingest never waits longer for it
_COLUMNS = (
    "run.run, event.run_id, event.id, event.at, event.step, event.rule, event.severity, "
    "event.message, event.layer, event.layers, event.value, event.limit_value, event.rules_version"
)


def append_to(
    connection: Connection, run_id: int, run: str, new: Sequence[Event], at: float
) -> list[StoredEvent]:
    """Append events to a run and increment its version."""
    (first,) = connection.execute(
        "select next_event from run where run_id = ?", (run_id,)
    ).fetchone()
    stored = append(connection, run_id, run, new, at, first)
    connection.execute(
        "update run set next_event = ?, version = version + 1 where run_id = ?",
        (first + len(new), run_id),
    )
    return stored


def append(
    connection: Connection, run_id: int, run: str, new: Sequence[Event], at: float, first: int
) -> list[StoredEvent]:
    """Append events from id ``first`` on; the caller stores the run's next id.

    A value or limit that is not finite is stored as null; rule and message describe it.
    """
    stored = numbered(run, new, at, first)
    insert(connection, run_id, stored)
    return stored


def numbered(run: str, new: Sequence[Event], at: float, first: int) -> list[StoredEvent]:
    """Return events with run, id and time, from id ``first`` on."""
    return [StoredEvent(run, first + i, at, event) for i, event in enumerate(new)]


def insert(connection: Connection, run_id: int, stored: Sequence[StoredEvent]) -> None:
    """Write the rows of numbered events, their counts, and the outbox."""
    connection.announce()
    counts = Counter((item.event.rule, item.event.severity) for item in stored)
    connection.executemany(
        "insert into event (run_id, id, at, step, rule, severity, layer, layers, value, "
        "limit_value, message, rules_version) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_values(run_id, item) for item in stored],
    )
    connection.executemany(
        "insert into alert_outbox (run_id, id) values (?, ?)",
        [(run_id, item.id) for item in stored],
    )
    connection.executemany(
        "insert into event_count (run_id, rule, severity, n) values (?, ?, ?, ?) "
        "on conflict (run_id, rule, severity) do update set n = event_count.n + excluded.n",
        [(run_id, rule, severity, n) for (rule, severity), n in counts.items()],
    )


def page(connection: Connection, query: EventQuery, run_id: int | None) -> Page:
    """Return events, newest first: by id within a run, by time over all of them."""
    filters = _filters(query, run_id)
    where = " and ".join(text for text, _ in filters) or "1 = 1"
    values = [value for _, group in filters for value in group]
    order = "event.at desc, event.run_id desc, event.id desc"
    if run_id is not None:
        order = "event.id desc"
    rows = connection.execute(
        f"select {_COLUMNS} from event join run on run.run_id = event.run_id "
        f"where {where} order by {order} limit ?",
        (*values, query.limit + 1),
    ).fetchall()
    shown = rows[: query.limit]
    if len(rows) <= query.limit:
        return Page([_stored(row) for row in shown], None)
    _, last_run_id, last_id, last_at = shown[-1][:4]
    key: tuple[Any, ...] = (last_id,) if run_id is not None else (last_at, last_run_id, last_id)
    return Page([_stored(row) for row in shown], key)


def overfull(connection: Connection, most: int) -> list[tuple[int, int]]:
    """Return runs with more than ``most`` events, and the newest id that each of them is to forget.

    Ids have no gaps.
    """
    rows = connection.execute(
        "select run.run_id, run.next_event - 1 - ? from run where run.next_event - 1 > ? "
        "and exists (select 1 from event where event.run_id = run.run_id "
        "and event.id <= run.next_event - 1 - ?)",
        (most, most, most),
    )
    return [(int(run_id), int(last)) for run_id, last in rows]


def forget(connection: Connection, run_id: int, last: int) -> int:
    """Delete the oldest `FORGOTTEN_AT_ONCE` events up to id ``last``; return how many."""
    (first,) = connection.execute(
        "select min(id) from event where run_id = ?", (run_id,)
    ).fetchone()
    if first is None:
        return 0
    below = min(last + 1, first + FORGOTTEN_AT_ONCE)
    for table in ("alert_outbox", "event"):
        gone = connection.execute(
            f"delete from {table} where run_id = ? and id < ?", (run_id, below)
        ).rowcount
    return gone


def counts(connection: Connection) -> dict[tuple[str, str, Severity], int]:
    """Return the number of events of each (run, rule, severity), from the counts alone."""
    rows = connection.execute(
        "select run.run, event_count.rule, event_count.severity, event_count.n "
        "from event_count join run on run.run_id = event_count.run_id"
    )
    return {(run, rule, severity): n for run, rule, severity, n in rows}


def _filters(query: EventQuery, run_id: int | None) -> list[tuple[str, tuple[Any, ...]]]:
    filters: list[tuple[str, tuple[Any, ...]]] = []
    if run_id is not None:
        filters.append(("event.run_id = ?", (run_id,)))
    for column in ("rule", "severity", "layer"):
        if (value := getattr(query, column)) is not None:
            filters.append((f"event.{column} = ?", (value,)))
    if query.project is not None:
        filters.append(("run.project = ?", (query.project,)))
    if query.from_step is not None:
        filters.append(("event.step >= ?", (query.from_step,)))
    if query.after is not None and run_id is not None:
        filters.append(("event.id < ?", query.after))
    elif query.after is not None:
        filters.append(("(event.at, event.run_id, event.id) < (?, ?, ?)", query.after))
    return filters


def _values(run_id: int, stored: StoredEvent) -> tuple[Any, ...]:
    event = stored.event
    return (
        run_id,
        stored.id,
        stored.at,
        event.step,
        event.rule,
        event.severity,
        event.layer,
        event.layers,
        _finite(event.value),
        _finite(event.limit),
        event.message,
        event.rules_version,
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _stored(row: Row) -> StoredEvent:
    run, _, id_, at, step, rule, severity, message, layer, layers, value, limit, version = row
    event = Event(step, rule, severity, message, layer, layers, value, limit, version)
    return StoredEvent(run, id_, at, event)
