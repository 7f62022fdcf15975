"""Incidents, deliveries and silences as rows. `events` fills the outbox with new events.

Every writer here first locks the row of ``alert_lock``, so one replica writes at a time. The rows
of runs are locked after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.records import audit, runs
from snc_service.store.types.incidents import (
    AlertDelivery,
    DueRun,
    Entry,
    Gather,
    Incident,
    IncidentChange,
    IncidentOrder,
    IncidentState,
    ReceiverHealth,
    RunFacts,
    Work,
)
from snc_service.wire import Severity
from snc_service.wire.rule_settings import SEVERITIES

SELECT = (
    "select incident.id, run.run, run.project, incident.state, incident.severity, incident.body, "
    "incident.opened_at, incident.updated_at, incident.revision, incident.omitted, "
    "incident.resolved_at, incident.acknowledged_at, incident.acknowledged_by "
    "from incident join run on run.run_id = incident.run_id"
)
# The numbers of `SEVERITIES`.
_RANK = "case incident.severity when 'critical' then 2 when 'warning' then 1 else 0 end"
FACTS = (
    "select run.run, run.project, run.state, run.updated_at, run.last_step, run.version, run.pulse "
    "from run"
)
# A process claims a delivery before it sends it; the claim of a crashed process expires.
_FREE = "(claimed_until is null or claimed_until <= ?)"
_DELIVERY = (
    "select delivery.incident, receiver, next_at, told, told_at, told_severity, failures, "
    "failing_since, error, silenced from delivery"
)


def lock(connection: Connection) -> None:
    """Wait for other replicas that write here; hold the lock until the end of the transaction."""
    connection.execute("update alert_lock set n = n + 1 where id = 1")


def work(connection: Connection, now: float) -> Work:
    """Return the pending work."""
    (version,) = connection.execute(
        "select coalesce((select max(version) from alerting), 0)"
    ).fetchone()
    outbox = connection.execute("select 1 from alert_outbox limit 1").fetchone() is not None
    due = connection.execute(
        f"select distinct receiver from delivery where next_at <= ? and {_FREE} order by receiver",
        (now, now),
    ).fetchall()
    return Work(int(version), outbox, tuple(receiver for (receiver,) in due))


def gather(connection: Connection, decide: Gather, now: float, limit: int) -> int:
    """Take events from the outbox, run by run, and store the changes of ``decide``."""
    lock(connection)
    rows = connection.execute(
        "select event.run_id, event.id, event.at, event.step, event.rule, event.severity, "
        "event.message, event.layer, event.layers, event.value, event.limit_value "
        "from alert_outbox join event "
        "on event.run_id = alert_outbox.run_id and event.id = alert_outbox.id "
        "join run on run.run_id = event.run_id "
        "order by event.run_id, event.id limit ?",
        (limit,),
    ).fetchall()
    by_run: dict[int, list[Entry]] = {}
    for run_id, *fields in rows:
        by_run.setdefault(run_id, []).append(Entry(*fields))
    for run_id, entries in by_run.items():
        if not runs.lock_number(connection, run_id):  # the run and its outbox are being deleted
            continue
        facts = facts_of(connection.execute(f"{FACTS} where run.run_id = ?", (run_id,)).fetchone())
        for change in decide(facts, _open(connection, run_id), entries):
            save(connection, run_id, change, now)
        connection.execute(
            "delete from alert_outbox where run_id = ? and id <= ?", (run_id, entries[-1].id)
        )
    return len(rows)


def save(connection: Connection, run_id: int, change: IncidentChange, now: float) -> None:
    """Store a new or changed incident and make the deliveries of its receivers due."""
    incident = change.incident
    if incident.id == 0:
        incident = _insert(connection, run_id, incident)
    else:
        _update(connection, incident)
    connection.executemany(
        "insert into delivery (run_id, incident, receiver, next_at) values (?, ?, ?, ?) "
        "on conflict (incident, receiver) do nothing",
        [(run_id, incident.id, receiver, now) for receiver in change.receivers],
    )
    # Held deliveries are checked after every change: a silence may not cover it.
    whose = "" if change.wake else " and silenced = 1"
    connection.execute(
        f"update delivery set next_at = ?, silenced = 0 where incident = ?{whose}",
        (now, incident.id),
    )


def change(connection: Connection, new: IncidentChange, now: float) -> bool:
    """Store an incident; False if another process changed it."""
    row = connection.execute(
        "select run_id, revision from incident where id = ?", (new.incident.id,)
    ).fetchone()
    if row is None or row[1] not in (new.incident.revision, new.incident.revision - 1):
        return False
    if not runs.lock_number(connection, row[0]):
        return False
    save(connection, row[0], new, now)
    return True


def overfull(connection: Connection, most: int) -> list[int]:
    """Return the runs with more than ``most`` incidents that are over."""
    rows = connection.execute(
        "select run_id from incident where state <> 'open' group by run_id having count(*) > ?",
        (most,),
    )
    return [int(run_id) for (run_id,) in rows]


def forget(connection: Connection, run_id: int, most: int) -> int:
    """Delete the incidents of a run that are over, but the newest ``most``; return how many."""
    lock(connection)
    over = "incident where run_id = ? and state <> 'open'"
    gone = f"select id from {over} and id <= ?"
    newest = connection.execute(
        f"select id from {over} order by id desc limit 1 offset ?", (run_id, most)
    ).fetchone()
    if newest is None:
        return 0
    connection.execute(
        f"delete from delivery where run_id = ? and incident in ({gone})",
        (run_id, run_id, newest[0]),
    )
    return connection.execute(f"delete from {over} and id <= ?", (run_id, newest[0])).rowcount


def load(connection: Connection, id_: int) -> Incident | None:
    """Return one incident."""
    row = connection.execute(f"{SELECT} where incident.id = ?", (id_,)).fetchone()
    return None if row is None else of_row(row)


def page(
    connection: Connection,
    *,
    run: str | None,
    project: str | None,
    state: IncidentState | None,
    severity: Severity | None,
    sort: IncidentOrder,
    limit: int,
    after: tuple[int, int] | None,
) -> tuple[list[Incident], tuple[int, int] | None]:
    """Return incidents in their order, and the key of the next page."""
    given: Mapping[str, Any] = {
        "run.run = ?": run,
        "run.project = ?": project,
        "incident.state = ?": state,
        "incident.severity = ?": severity,
    }
    filters = {text: value for text, value in given.items() if value is not None}
    where, values = [*filters], [*filters.values()]
    order = "incident.id desc"
    if sort == "severity":
        order = f"{_RANK} desc, {order}"
    if after is not None:
        rank, least = after
        below = f"({_RANK} < ? or ({_RANK} = ? and incident.id < ?))"
        where.append(below if sort == "severity" else "incident.id < ?")
        values += [rank, rank, least] if sort == "severity" else [least]
    rows = connection.execute(
        f"{SELECT} where {' and '.join(where) or '1 = 1'} order by {order} limit ?",
        (*values, limit + 1),
    ).fetchall()
    shown = [of_row(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return shown, None
    return shown, (SEVERITIES.index(shown[-1].severity), shown[-1].id)


def acknowledge(
    connection: Connection, id_: int, author: str, now: float, comment: str
) -> Incident | None:
    """Record the acknowledgement of an incident; a second one does not replace the first."""
    lock(connection)
    incident = load(connection, id_)
    if incident is None or incident.acknowledged_at is not None or incident.state != "open":
        return incident
    known = replace(
        incident, acknowledged_at=now, acknowledged_by=author, revision=incident.revision + 1
    )
    _update(connection, known)
    audit.append(
        connection, "incident_acknowledged", str(id_), author=author, now=now, detail=comment
    )
    return known


def waiting(connection: Connection, receiver: str, now: float) -> list[DueRun]:
    """Return the runs of which something is due to a receiver. Reads all that is due."""
    rows = connection.execute(
        f"select run.run, run.project, max({_RANK}), min(delivery.next_at) from delivery "
        "join incident on incident.id = delivery.incident "
        "join run on run.run_id = delivery.run_id "
        "join run_name on run_name.run = run.run "  # else it is being deleted
        f"where delivery.receiver = ? and delivery.next_at <= ? and {_FREE} "
        "group by run.run, run.project",
        (receiver, now, now),
    ).fetchall()
    return [DueRun(run, project, SEVERITIES[rank], at) for run, project, rank, at in rows]


def due(
    connection: Connection, receiver: str, run: str, now: float, limit: int
) -> list[tuple[AlertDelivery, Incident]]:
    """Return a run's due deliveries, the most severe first, of those the one due for longest."""
    rows = connection.execute(
        f"{_DELIVERY} join incident on incident.id = delivery.incident "
        f"where delivery.receiver = ? and delivery.next_at <= ? and {_FREE} "
        "and delivery.run_id = (select run_id from run_name where run = ?) "
        f"order by {_RANK} desc, delivery.next_at, delivery.incident limit ?",
        (receiver, now, now, run, limit),
    ).fetchall()
    found = [(_delivery(row), load(connection, row[0])) for row in rows]
    return [(delivery, incident) for delivery, incident in found if incident is not None]


def claim(connection: Connection, delivery: AlertDelivery, now: float, until: float) -> bool:
    """Claim a delivery; False if it changed since the read or another process has claimed it.

    The caller holds the lock.
    """
    changed = connection.execute(
        "update delivery set claimed_until = ? where incident = ? and receiver = ? "
        f"and next_at = ? and {_FREE}",
        (until, delivery.incident, delivery.receiver, delivery.next_at, now),
    )
    return changed.rowcount > 0


def save_delivery(
    connection: Connection,
    delivery: AlertDelivery,
    revision: int,
    now: float,
    hold_until: float | None,
) -> None:
    """Store the result of a delivery. The caller holds the lock."""
    row = connection.execute(
        "select revision from incident where id = ?", (delivery.incident,)
    ).fetchone()
    stale = row is not None and row[0] != revision and delivery.failures == 0
    connection.execute(
        "update delivery set next_at = ?, told = ?, told_at = ?, told_severity = ?, failures = ?, "
        "failing_since = ?, error = ?, silenced = ?, claimed_until = null "
        "where incident = ? and receiver = ?",
        (
            now if stale else delivery.next_at,
            delivery.told,
            delivery.told_at,
            delivery.told_severity,
            delivery.failures,
            delivery.failing_since,
            delivery.error,
            int(delivery.silenced),
            delivery.incident,
            delivery.receiver,
        ),
    )
    if hold_until is not None:
        connection.execute(
            "update delivery set next_at = ? where receiver = ? and next_at < ?",
            (hold_until, delivery.receiver, hold_until),
        )


def health(connection: Connection) -> list[ReceiverHealth]:
    """Return the health of each receiver: deliveries not sent yet or failed, and failures."""
    rows = connection.execute(
        "select receiver, sum(case when next_at is not null and (told = 'nothing' or failures > 0) "
        "then 1 else 0 end), max(failures), max(error), max(told_at) "
        "from delivery group by receiver order by receiver"
    )
    return [ReceiverHealth(name, int(n), int(f), error, at) for name, n, f, error, at in rows]


def _insert(connection: Connection, run_id: int, incident: Incident) -> Incident:
    (id_,) = connection.execute(
        "insert into incident (run_id, state, severity, body, opened_at, updated_at, revision, "
        "omitted, resolved_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?) returning id",
        (
            run_id,
            incident.state,
            incident.severity,
            _body(incident.entries),
            incident.opened_at,
            incident.updated_at,
            incident.revision,
            incident.omitted,
            incident.resolved_at,
        ),
    ).fetchone()
    return replace(incident, id=int(id_))


def _update(connection: Connection, incident: Incident) -> None:
    connection.execute(
        "update incident set state = ?, severity = ?, body = ?, updated_at = ?, revision = ?, "
        "omitted = ?, resolved_at = ?, acknowledged_at = ?, acknowledged_by = ? where id = ?",
        (
            incident.state,
            incident.severity,
            _body(incident.entries),
            incident.updated_at,
            incident.revision,
            incident.omitted,
            incident.resolved_at,
            incident.acknowledged_at,
            incident.acknowledged_by,
            incident.id,
        ),
    )


def _open(connection: Connection, run_id: int) -> Incident | None:
    row = connection.execute(
        f"{SELECT} where incident.run_id = ? and incident.state = 'open' "
        "order by incident.id desc limit 1",
        (run_id,),
    ).fetchone()
    return None if row is None else of_row(row)


def _body(entries: Iterable[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries])


def of_row(row: Row) -> Incident:
    """Return the incident of a row of `SELECT`."""
    id_, run, project, state, severity, body, opened_at, updated_at, revision, *rest = row
    entries: Sequence[Mapping[str, Any]] = json.loads(body)
    return Incident(
        id_,
        run,
        project,
        state,
        severity,
        tuple(Entry(**entry) for entry in entries),
        opened_at,
        updated_at,
        revision,
        *rest,
    )


def facts_of(row: Row) -> RunFacts:
    """Return the facts of a row of `FACTS`."""
    run, project, state, updated_at, last_step, version, pulse = row
    beat = None if pulse is None else bytes(pulse)
    return RunFacts(run, project, state, updated_at, last_step or 0, version, beat)


def _delivery(row: Row) -> AlertDelivery:
    fields = [*row[:-1], bool(row[-1])]
    return AlertDelivery(*fields)
