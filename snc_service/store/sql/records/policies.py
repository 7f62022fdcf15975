"""Policies: every version is kept; a run's own wins over its project's."""

from __future__ import annotations

import json

from snc_service.store.protocol import Event, PolicyConflict, StoredPolicy
from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.records import audit, events, runs
from snc_service.wire import Policy

NO_POLICY = StoredPolicy(Policy(), 0, "none", "", 0.0)
_RUN = "select body, version, 'run', author, at from run_policy where run_id = ?"
_PROJECT = "select body, version, 'project', author, at from project_policy where project = ?"
_NEWEST = "order by version desc"


def of_run(connection: Connection, run_id: int) -> StoredPolicy:
    """Return the policy in force: the run's own, else its project's, else version 0."""
    own = connection.execute(f"{_RUN} {_NEWEST} limit 1", (run_id,)).fetchone()
    if own is not None:
        return _policy(own)
    (project,) = connection.execute(
        "select project from run where run_id = ?", (run_id,)
    ).fetchone()
    return of_project(connection, project)


def version_of_run(connection: Connection, run_id: int) -> int:
    """Return the version in force without reading its body."""
    row = connection.execute(
        "select coalesce((select max(version) from run_policy where run_id = ?), "
        "(select max(version) from project_policy where project = "
        "(select project from run where run_id = ?)), 0)",
        (run_id, run_id),
    ).fetchone()
    return int(row[0])


def of_project(connection: Connection, project: str) -> StoredPolicy:
    """Return a project's policy, version 0 if it has none."""
    row = connection.execute(f"{_PROJECT} {_NEWEST} limit 1", (project,)).fetchone()
    return NO_POLICY if row is None else _policy(row)


def versions_of_run(connection: Connection, run_id: int) -> list[StoredPolicy]:
    """Return every version of the run's own policy, newest first."""
    return [_policy(row) for row in connection.execute(f"{_RUN} {_NEWEST}", (run_id,))]


def versions_of_project(connection: Connection, project: str) -> list[StoredPolicy]:
    """Return every version of a project's policy, newest first."""
    return [_policy(row) for row in connection.execute(f"{_PROJECT} {_NEWEST}", (project,))]


def put_for_run(
    connection: Connection,
    run: str,
    policy: Policy,
    *,
    author: str,
    now: float,
    if_version: int | None,
) -> StoredPolicy:
    """Store the next version of a run's own policy, with its event."""
    run_id = runs.lock(connection, run)
    version = _next(version_of_run(connection, run_id), if_version)
    connection.execute(
        "insert into run_policy (run_id, version, body, author, at) values (?, ?, ?, ?, ?)",
        (run_id, version, json.dumps(policy.as_dict()), author, now),
    )
    event = Event(
        step=runs.load(connection, run).last_step or 0,
        rule="policy_changed",
        severity="info",
        message=f"policy version {version} by {author or 'nobody named'}",
        value=float(version),
    )
    events.append_to(connection, run_id, run, [event], now)
    audit.append(
        connection, "run_policy_changed", run, author=author, now=now, detail=f"version {version}"
    )
    return StoredPolicy(policy, version, "run", author, now)


def start_with(
    connection: Connection, run_id: int, policy: Policy, *, author: str, now: float
) -> None:
    """Make ``policy`` version 1 of the run's own, unless a policy is in force already."""
    if version_of_run(connection, run_id) == 0:
        connection.execute(
            "insert into run_policy (run_id, version, body, author, at) values (?, 1, ?, ?, ?)",
            (run_id, json.dumps(policy.as_dict()), author, now),
        )


def put_for_project(
    connection: Connection,
    project: str,
    policy: Policy,
    *,
    author: str,
    now: float,
    if_version: int | None,
) -> StoredPolicy:
    """Store the next version of a project's policy."""
    inserted = 0
    while not inserted:  # again if another process took the same version
        version = _next(of_project(connection, project).version, if_version)
        inserted = connection.execute(
            "insert into project_policy (project, version, body, author, at) "
            "values (?, ?, ?, ?, ?) on conflict (project, version) do nothing",
            (project, version, json.dumps(policy.as_dict()), author, now),
        ).rowcount
    audit.append(
        connection,
        "project_policy_changed",
        project,
        author=author,
        now=now,
        detail=f"version {version}",
    )
    return StoredPolicy(policy, version, "project", author, now)


def _next(current: int, if_version: int | None) -> int:
    if if_version is not None and if_version != current:
        raise PolicyConflict(current)
    return current + 1


def _policy(row: Row) -> StoredPolicy:
    body, version, scope, author, at = row
    return StoredPolicy(Policy.parse(json.loads(body)), version, scope, author, at)
