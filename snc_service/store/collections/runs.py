"""Runs of a store: created, listed, ended, deleted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from snc_service.store.sql.compaction.thinning import thin
from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    acknowledgement,
    commands,
    deletion,
    documents,
    run_search,
    runs,
    tokens,
)
from snc_service.store.types import (
    EndState,
    Page,
    Run,
    RunState,
    StoredEvent,
)
from snc_service.store.types.run_search import RunChange, RunSearch, RunSummary
from snc_service.wire import Policy


class Runs:
    """Training jobs by run id. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        run: str,
        *,
        name: str,
        project: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        policy: Policy | None,
        now: float,
        author: str = "client",
        quota: int | None = None,
    ) -> tuple[Run, bool]:
        """Create a run (event ``run_started``), or return the existing one; True if new.

        An existing run that is finished, failed or silent becomes active again. ``policy`` becomes
        version 1 of the run's own policy if neither the run nor its project has one. Raises
        `QuotaExceeded` if ``author`` has created ``quota`` runs that still exist.
        """
        with self._database.write() as connection:
            run_id, new = runs.create(
                connection, run, name=name, project=project, config=config, tags=tags, now=now
            )
            if new:
                tokens.claim_run(connection, run_id, author, quota)
            if policy is not None:
                documents.POLICIES.start_with(connection, run_id, policy, author=author, now=now)
            return runs.load(connection, run), new

    def get(self, run: str) -> Run:
        """Return one run. Raises `RunUnknown`."""
        with self._database.read() as connection:
            return runs.load(connection, run)

    def project_of(self, run: str) -> str:
        """Return a run's project. Raises `RunUnknown`."""
        with self._database.read() as connection:
            return runs.project(connection, run)

    def page(
        self,
        *,
        project: str | None = None,
        state: RunState | None = None,
        limit: int = 100,
        after: tuple[Any, ...] | None = None,
    ) -> Page:
        """Return runs, newest first."""
        with self._database.read() as connection:
            return runs.page(connection, project=project, state=state, limit=limit, after=after)

    def search(self, search: RunSearch) -> Page:
        """Return a page of the runs that a search finds, in its order."""
        with self._database.read() as connection:
            return run_search.page(connection, search)

    def summary(self, search: RunSearch) -> RunSummary:
        """Count what a search finds, and list what runs offer to search for."""
        with self._database.read() as connection:
            return run_search.summary(connection, search)

    def change(self, run: str, wanted: RunChange, *, author: str, now: float) -> Run:
        """Change name, tags, note or archive of a run. Raises `RunUnknown`."""
        with self._database.write() as connection:
            return runs.change(connection, run, wanted, author, now)

    def acknowledge(self, run: str, *, author: str, now: float, comment: str = "") -> Run:
        """Note that somebody knows how a run ended, and acknowledge its open incidents.

        Raises `RunUnknown`.
        """
        with self._database.write() as connection:
            return acknowledgement.acknowledge(connection, run, author, now, comment)

    def finish(self, run: str, state: EndState, now: float) -> Run:
        """Close a run (event ``run_finished``). Closing a closed run changes nothing."""
        with self._database.write() as connection:
            commands.void(connection, runs.lock(connection, run), now)
            return runs.finish(connection, run, state, now)

    def mark_silent(self, before: float, now: float) -> list[StoredEvent]:
        """Turn active runs last updated before ``before`` silent (event ``run_silent``, once)."""
        with self._database.write() as connection:
            return runs.mark_silent(connection, before, now)

    def delete(self, run: str, *, author: str = "", now: float | None = None) -> None:
        """Delete everything of a run (audit ``run_deleted``). Raises `RunUnknown`."""
        now = time.time() if now is None else now
        deletion.delete(self._database, run, author=author, now=now)

    def prune(self, before: float) -> list[str]:
        """Delete every run that is not active and was last updated before ``before``.

        Returns the deleted ids. Locks at most one slice of rows at a time.
        """
        return deletion.prune(self._database, before)

    def shrink(self, most_bytes: int) -> list[str]:
        """Delete inactive runs, oldest first, until history has at most ``most_bytes`` bytes.

        Returns the deleted ids. Active runs alone may exceed the limit. Reads the length of every
        tile.
        """
        return deletion.shrink(self._database, most_bytes)

    def thin(self, before: float, now: float) -> list[str]:
        """Drop exact values of inactive runs last updated before ``before``; keep their rollups.

        Their history then has min, max and mean of every 32 measured steps. Returns the ids of the
        thinned runs (audit ``run_thinned``).
        """
        return thin(self._database, before, now)
