"""Runs: their rows, lists and states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from snc_service.store.sql.database import run_terms
from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.records import audit, events
from snc_service.store.types import EndState, Event, Page, Run, RunState, RunUnknown, StoredEvent
from snc_service.store.types.run_search import RunChange
from snc_service.wire.rule_settings import SEVERITIES

# What the last values of a run that is not active say. A breach that its job rescaled was held.
ENDED_IN = """(case when run.state = 'active' then null
when run.nonfinite_layers > 0 or run.nonfinite_loss > 0 then 'nonfinite'
when run.worst_ratio > 1 and run.rescales < run.breaches then 'breach' else null end)"""
_OPEN = "from incident where incident.run_id = run.run_id and incident.state = 'open'"
INCIDENTS = f"(select count(*) {_OPEN})"
_SEVEREST = f"""(select max(case incident.severity when 'critical' then 2 when 'warning' then 1
else 0 end) {_OPEN})"""
COLUMNS = f"""
run.run, run.name, run.project, run.state, run.created_at, run.updated_at, run.last_step,
run.layers, run.breaches, run.rescales, run.guard_vetoes, run.dropped_values, run.worst_ratio,
run.worst_layer, run.nonfinite_layers, run.attempt, run.version, run_config.config, run_config.tags,
run.overhead, run.loss, run.nonfinite_loss, run.archived, run_config.note, run.acknowledged_at,
run.acknowledged_by, {ENDED_IN}, {INCIDENTS}, {_SEVEREST}, run.run_id"""
_SELECT = f"select {COLUMNS} from run join run_config on run_config.run_id = run.run_id"


def number(connection: Connection, run: str) -> int:
    """Return the number of a run. Raises `RunUnknown`."""
    row = connection.execute("select run_id from run_name where run = ?", (run,)).fetchone()
    if row is None:
        raise RunUnknown(f"there is no run {run!r}")
    return int(row[0])


def lock(connection: Connection, run: str) -> int:
    """Return the number of a run, its row locked. Raises `RunUnknown`."""
    run_id = number(connection, run)
    if not lock_number(connection, run_id):
        raise RunUnknown(f"there is no run {run!r}")
    return run_id


def lock_number(connection: Connection, run_id: int) -> bool:
    """Lock the row of a run until the end of the transaction; False: it was deleted meanwhile."""
    row = connection.execute(
        f"select run_id from run where run_id = ?{connection.for_update}", (run_id,)
    ).fetchone()
    return row is not None


def version(connection: Connection, run_id: int) -> int:
    """Return how often a run has changed."""
    row = connection.execute("select version from run where run_id = ?", (run_id,)).fetchone()
    return int(row[0])


def lock_name(connection: Connection, run: str) -> int | None:
    """Lock the name of a run; return its number, None if there is none.

    The lock keeps others from creating or deleting the run. It is taken before the lock of the
    run's row, never after it.
    """
    row = connection.execute(
        f"select run_id from run_name where run = ?{connection.for_update}", (run,)
    ).fetchone()
    return None if row is None else int(row[0])


def project(connection: Connection, run: str) -> str:
    """Return the project of a run. Raises `RunUnknown`."""
    row = connection.execute(
        "select project from run where run_id = ?", (number(connection, run),)
    ).fetchone()
    return str(row[0])


def load(connection: Connection, run: str) -> Run:
    """Return one run. Raises `RunUnknown`."""
    row = connection.execute(f"{_SELECT} where run.run_id = ?", (number(connection, run),))
    found = row.fetchone()
    if found is None:
        raise RunUnknown(f"there is no run {run!r}")
    return of_row(found)


def page(
    connection: Connection,
    *,
    project: str | None,
    state: RunState | None,
    limit: int,
    after: tuple[Any, ...] | None,
) -> Page:
    """Return runs, the newest first, in one scan of the primary key or of the project's index."""
    filters: list[tuple[str, Any]] = []
    if project is not None:
        filters.append(("run.project = ?", project))
    if state is not None:
        filters.append(("run.state = ?", state))
    if after is not None:
        filters.append(("run.run_id < ?", int(after[0])))
    where = " and ".join(text for text, _ in filters) or "1 = 1"
    values = [value for _, value in filters]
    rows = connection.execute(
        f"{_SELECT} where {where} order by run.run_id desc limit ?", (*values, limit + 1)
    ).fetchall()
    more = len(rows) > limit
    return Page([of_row(row) for row in rows[:limit]], (rows[limit - 1][-1],) if more else None)


def create(
    connection: Connection,
    run: str,
    *,
    name: str,
    project: str,
    config: Mapping[str, Any],
    tags: Sequence[str],
    now: float,
) -> tuple[int, bool]:
    """Create a run or reactivate an existing one; return its number and whether it is new."""
    while (run_id := lock_name(connection, run)) is None:
        # Waits here for a concurrent creation or deletion of the same run.
        connection.execute(
            "insert into run_name (run) values (?) on conflict (run) do nothing", (run,)
        )
    inserted = connection.execute(
        "insert into run (run_id, run, name, project, state, created_at, updated_at) "
        "values (?, ?, ?, ?, 'active', ?, ?) on conflict (run_id) do nothing",
        (run_id, run, name, project, now, now),
    ).rowcount
    if not inserted:
        lock_number(connection, run_id)
        _set_state(connection, run_id, "active", now, only_from=("silent", "finished", "failed"))
        return run_id, False
    connection.execute(
        "insert into run_config (run_id, config, tags) values (?, ?, ?)",
        (run_id, json.dumps(dict(config)), json.dumps(list(tags))),
    )
    _insert_terms(connection, run_id, config, tags)
    event = Event(step=0, rule="run_started", severity="info", message=f"run {run} started")
    events.append_to(connection, run_id, run, [event], now)
    return run_id, True


def finish(connection: Connection, run: str, state: EndState, now: float) -> Run:
    """Close a run; closing a closed one changes nothing."""
    run_id = lock(connection, run)
    if _set_state(connection, run_id, state, now, only_from=("active", "silent")):
        step = load(connection, run).last_step or 0
        failed = state == "failed"
        event = Event(
            step=step,
            rule="run_finished",
            severity="warning" if failed else "info",
            message=f"run {run} {state} at step {step}",
        )
        events.append_to(connection, run_id, run, [event], now)
    return load(connection, run)


def mark_silent(connection: Connection, before: float, now: float) -> list[StoredEvent]:
    """Turn active runs last updated before ``before`` silent, with an event each.

    A run updated equally far in the future also becomes silent: the clock was ahead then.
    """
    quiet = "where state = 'active' and (updated_at < ? or updated_at > ?)"
    bounds = (before, now + (now - before))
    numbers = connection.execute(
        f"select run_id from run {quiet} order by run_id", bounds
    ).fetchall()
    stored: list[StoredEvent] = []
    for (run_id,) in numbers:
        row = connection.execute(
            f"select run, updated_at, last_step from run {quiet} and run_id = ?"
            f"{connection.for_update}",
            (*bounds, run_id),
        ).fetchone()
        if row is None:  # updated in between, or another process was faster
            continue
        run, heard_at, last_step = row
        _set_state(connection, run_id, "silent", now, only_from=("active",))
        seconds = max(now - heard_at, now - before)
        event = Event(
            step=last_step or 0,
            rule="run_silent",
            severity="warning",
            message=f"run {run} sent nothing for {seconds:.0f} seconds",
            value=seconds,
        )
        stored += events.append_to(connection, run_id, run, [event], now)
    return stored


def _set_state(
    connection: Connection, run_id: int, state: str, now: float, *, only_from: tuple[str, ...]
) -> bool:
    places = ", ".join("?" for _ in only_from)
    changed = connection.execute(
        "update run set state = ?, updated_at = ?, version = version + 1 "
        f"where run_id = ? and state in ({places})",
        (state, now, run_id, *only_from),
    ).rowcount
    return changed > 0


def of_row(row: Row) -> Run:
    """Return the run of a row of `COLUMNS`."""
    plain, (config, tags, overhead, loss, broken, archived, *rest) = row[:17], row[17:-1]
    *noted, incidents, rank = rest
    about = (json.loads(config), tuple(json.loads(tags)), overhead)
    severity = None if rank is None else SEVERITIES[rank]
    fields = [*plain, *about, loss, bool(broken), bool(archived), *noted, incidents, severity]
    return Run(*fields)


def change(connection: Connection, run: str, wanted: RunChange, author: str, now: float) -> Run:
    """Change what users say about a run (audit ``run_changed``); the job does not notice."""
    run_id = lock(connection, run)
    before = load(connection, run)
    if wanted.name is not None:
        connection.execute("update run set name = ? where run_id = ?", (wanted.name, run_id))
    if wanted.archived is not None:
        connection.execute(
            "update run set archived = ? where run_id = ?", (int(wanted.archived), run_id)
        )
    if wanted.note is not None:
        connection.execute("update run_config set note = ? where run_id = ?", (wanted.note, run_id))
    if wanted.tags is not None:
        connection.execute(
            "update run_config set tags = ? where run_id = ?",
            (json.dumps(list(wanted.tags)), run_id),
        )
        connection.execute("delete from run_term where run_id = ?", (run_id,))
        _insert_terms(connection, run_id, before.config, wanted.tags)
    connection.execute("update run set version = version + 1 where run_id = ?", (run_id,))
    names = ("name", "tags", "note", "archived")
    detail = ", ".join(name for name in names if getattr(wanted, name) is not None)
    audit.append(connection, "run_changed", run, author=author, now=now, detail=detail)
    return load(connection, run)


def _insert_terms(
    connection: Connection, run_id: int, config: Mapping[str, Any], tags: Sequence[str]
) -> None:
    found = [(run_id, *term) for term in run_terms.terms(config, tags)]
    if found:
        connection.executemany(run_terms.INSERT, found)


def append_event(
    connection: Connection,
    run_id: int,
    run: str,
    rule: str,
    message: str,
    value: float,
    now: float,
    step: int | None = None,
) -> None:
    """Append an informational event caused by a user, at the run's last step by default."""
    if step is None:
        step = load(connection, run).last_step or 0
    event = Event(step=step, rule=rule, severity="info", message=message, value=value)
    events.append_to(connection, run_id, run, [event], now)
