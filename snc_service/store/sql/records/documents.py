"""Versioned documents as rows: policies and rule settings, of runs and of projects.

A kind of document has two tables, ``run_X`` and ``project_X``, with one row per version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.records import audit, runs
from snc_service.store.types import (
    Bounds,
    RunFull,
    ServiceFull,
    VersionConflict,
    VersionedDocument,
)
from snc_service.store.types.records import AuditAction
from snc_service.wire import Policy, RuleSettings

T = TypeVar("T")

_NEWEST = "order by version desc"
NEWEST: Final = 2**31 - 1  # above every version


@dataclass(frozen=True)
class DocumentTables(Generic[T]):
    """The two tables of one kind of document; ``key`` is the common part of their names."""

    key: str
    noun: str
    event: str
    run_audit: AuditAction
    project_audit: AuditAction
    default: T
    parse: Callable[[Any], T]
    as_json: Callable[[T], Mapping[str, Any]]

    @property
    def nothing(self) -> VersionedDocument[T]:
        """Return the default document, in force where none is stored."""
        return VersionedDocument(self.default, 0, "none", "", 0.0)

    def of_run(self, connection: Connection, run_id: int) -> VersionedDocument[T]:
        """Return the document in force: the run's own, else its project's, else the default."""
        own = connection.execute(f"{self._of_run} limit 1", (run_id, NEWEST)).fetchone()
        if own is not None:
            return self._stored(own)
        (project,) = connection.execute(
            "select project from run where run_id = ?", (run_id,)
        ).fetchone()
        return self.of_project(connection, project)

    def of_project(self, connection: Connection, project: str) -> VersionedDocument[T]:
        """Return a project's document, the default with version 0 if it has none."""
        row = connection.execute(f"{self._of_project} limit 1", (project, NEWEST)).fetchone()
        return self.nothing if row is None else self._stored(row)

    def versions_of_run(
        self, connection: Connection, run_id: int, limit: int, below: int
    ) -> list[VersionedDocument[T]]:
        """Return the versions below ``below`` of the run's own document, newest first."""
        rows = connection.execute(f"{self._of_run} limit ?", (run_id, below, limit))
        return [self._stored(row) for row in rows]

    def versions_of_project(
        self, connection: Connection, project: str, limit: int, below: int
    ) -> list[VersionedDocument[T]]:
        """Return the versions below ``below`` of a project's document, newest first."""
        rows = connection.execute(f"{self._of_project} limit ?", (project, below, limit))
        return [self._stored(row) for row in rows]

    def put_for_run(
        self,
        connection: Connection,
        run: str,
        content: T,
        *,
        author: str,
        now: float,
        if_version: int | None,
        bounds: Bounds,
    ) -> VersionedDocument[T]:
        """Store the next version of a run's own document, with its event and audit entry.

        Raises `VersionConflict`, `RunFull`.
        """
        run_id = runs.lock(connection, run)
        if self._count(connection, "run", "run_id", run_id) >= bounds.run.versions:
            raise RunFull(f"versions of the {self.noun}", "versions", bounds.run.versions, self.key)
        version = self._next(self._version_of_run(connection, run_id), if_version)
        self._insert_for_run(connection, run_id, version, content, author, now)
        message = f"{self.noun} version {version} by {author or 'nobody named'}"
        runs.append_event(connection, run_id, run, self.event, message, float(version), now)
        detail = f"version {version}"
        audit.append(connection, self.run_audit, run, author=author, now=now, detail=detail)
        return VersionedDocument(content, version, "run", author, now)

    def start_with(
        self, connection: Connection, run_id: int, content: T, *, author: str, now: float
    ) -> None:
        """Make ``content`` version 1 of the run's own document, unless one is in force."""
        if self._version_of_run(connection, run_id) == 0:
            self._insert_for_run(connection, run_id, 1, content, author, now)

    def put_for_project(
        self,
        connection: Connection,
        project: str,
        content: T,
        *,
        author: str,
        now: float,
        if_version: int | None,
        bounds: Bounds,
    ) -> VersionedDocument[T]:
        """Store the next version of a project's document, with its audit entry.

        Raises `VersionConflict`, `RunFull`, `ServiceFull`.
        """
        self._check_project(connection, project, bounds)
        inserted = 0
        while not inserted:  # again if another process took the same version
            version = self._next(self.of_project(connection, project).version, if_version)
            inserted = connection.execute(
                f"insert into project_{self.key} (project, version, body, author, at) "
                "values (?, ?, ?, ?, ?) on conflict (project, version) do nothing",
                (project, version, json.dumps(self.as_json(content)), author, now),
            ).rowcount
        detail = f"version {version}"
        audit.append(connection, self.project_audit, project, author=author, now=now, detail=detail)
        return VersionedDocument(content, version, "project", author, now)

    def _check_project(self, connection: Connection, project: str, bounds: Bounds) -> None:
        count = self._count(connection, "project", "project", project)
        if count >= bounds.run.versions:
            raise RunFull(f"versions of the {self.noun}", "versions", bounds.run.versions, self.key)
        if count:
            return
        (projects,) = connection.execute(
            f"select count(distinct project) from project_{self.key}"
        ).fetchone()
        if projects >= bounds.store.projects:
            raise ServiceFull(
                f"projects with {self.noun} of their own",
                "projects",
                bounds.store.projects,
                "project",
            )

    def _count(self, connection: Connection, owner: str, column: str, value: int | str) -> int:
        (count,) = connection.execute(
            f"select count(*) from {owner}_{self.key} where {column} = ?", (value,)
        ).fetchone()
        return int(count)

    @property
    def _of_run(self) -> str:
        columns = "body, version, 'run', author, at"
        return f"select {columns} from run_{self.key} where run_id = ? and version < ? {_NEWEST}"

    @property
    def _of_project(self) -> str:
        columns = "body, version, 'project', author, at"
        where = "where project = ? and version < ?"
        return f"select {columns} from project_{self.key} {where} {_NEWEST}"

    def _version_of_run(self, connection: Connection, run_id: int) -> int:
        """Return the version in force without reading its body."""
        row = connection.execute(
            f"select coalesce((select max(version) from run_{self.key} where run_id = ?), "
            f"(select max(version) from project_{self.key} where project = "
            "(select project from run where run_id = ?)), 0)",
            (run_id, run_id),
        ).fetchone()
        return int(row[0])

    def _insert_for_run(
        self,
        connection: Connection,
        run_id: int,
        version: int,
        content: T,
        author: str,
        now: float,
    ) -> None:
        connection.execute(
            f"insert into run_{self.key} (run_id, version, body, author, at) "
            "values (?, ?, ?, ?, ?)",
            (run_id, version, json.dumps(self.as_json(content)), author, now),
        )

    def _next(self, current: int, if_version: int | None) -> int:
        if if_version is not None and if_version != current:
            raise VersionConflict(self.noun, current)
        return current + 1

    def _stored(self, row: Row) -> VersionedDocument[T]:
        body, version, scope, author, at = row
        return VersionedDocument(self.parse(json.loads(body)), version, scope, author, at)


POLICIES: DocumentTables[Policy] = DocumentTables(
    key="policy",
    noun="policy",
    event="policy_changed",
    run_audit="run_policy_changed",
    project_audit="project_policy_changed",
    default=Policy(),
    parse=Policy.parse,
    as_json=Policy.as_dict,
)
RULE_SETTINGS: DocumentTables[RuleSettings] = DocumentTables(
    key="rules",
    noun="rule settings",
    event="rules_changed",
    run_audit="run_rules_changed",
    project_audit="project_rules_changed",
    default=RuleSettings(),
    parse=RuleSettings.parse,
    as_json=RuleSettings.changes,
)
