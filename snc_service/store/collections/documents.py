"""Versioned documents of a store: policies or rule settings, of runs and of projects."""

from __future__ import annotations

from typing import Generic, TypeVar

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import runs
from snc_service.store.sql.records.documents import NEWEST, DocumentTables
from snc_service.store.types import Bounds, VersionedDocument

T = TypeVar("T")


class Documents(Generic[T]):
    """Documents of one kind. A run's own takes precedence, then its project's, then the default.

    Every change writes an audit entry and, for a run, an event. Versions are kept. Each
    method is one transaction. An unknown run raises `RunUnknown`.
    """

    def __init__(self, database: Database, tables: DocumentTables[T], bounds: Bounds) -> None:
        self._database = database
        self._tables = tables
        self._bounds = bounds

    def of_run(self, run: str) -> VersionedDocument[T]:
        """Return the document in force: the run's own, else its project's, else the default."""
        with self._database.read() as connection:
            return self._tables.of_run(connection, runs.number(connection, run))

    def put_for_run(
        self, run: str, content: T, *, author: str, now: float, if_version: int | None
    ) -> VersionedDocument[T]:
        """Store a new version of the run's own document, one above the version in force.

        Raises `VersionConflict` unless ``if_version`` is None or the version in force, and
        `RunFull`.
        """
        with self._database.write() as connection:
            return self._tables.put_for_run(
                connection,
                run,
                content,
                author=author,
                now=now,
                if_version=if_version,
                bounds=self._bounds,
            )

    def versions_of_run(
        self, run: str, *, limit: int = 100, below: int = NEWEST
    ) -> list[VersionedDocument[T]]:
        """Return the versions below ``below`` of the run's own document, newest first."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return self._tables.versions_of_run(connection, run_id, limit, below)

    def of_project(self, project: str) -> VersionedDocument[T]:
        """Return a project's document, the default with version 0 if it has none."""
        with self._database.read() as connection:
            return self._tables.of_project(connection, project)

    def put_for_project(
        self, project: str, content: T, *, author: str, now: float, if_version: int | None
    ) -> VersionedDocument[T]:
        """Store a new version of a project's document.

        Raises `VersionConflict`, `RunFull` and `ServiceFull`.
        """
        with self._database.write() as connection:
            return self._tables.put_for_project(
                connection,
                project,
                content,
                author=author,
                now=now,
                if_version=if_version,
                bounds=self._bounds,
            )

    def versions_of_project(
        self, project: str, *, limit: int = 100, below: int = NEWEST
    ) -> list[VersionedDocument[T]]:
        """Return the versions below ``below`` of a project's document, newest first."""
        with self._database.read() as connection:
            return self._tables.versions_of_project(connection, project, limit, below)
