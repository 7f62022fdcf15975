"""Incidents of a store: groups of related events."""

from __future__ import annotations

from collections.abc import Sequence

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    incidents,
    open_incidents,
)
from snc_service.store.types import RunBounds
from snc_service.store.types.incidents import (
    Gather,
    Incident,
    IncidentChange,
    IncidentOrder,
    IncidentState,
    OpenIncident,
    RunFacts,
    Work,
)
from snc_service.wire import Severity


class Incidents:
    """Incidents that `snc_service.alerts` gathers from events. Each method is one transaction."""

    def __init__(self, database: Database, bounds: RunBounds) -> None:
        self._database = database
        self._most = bounds.incidents

    def work(self, now: float) -> Work:
        """Return the pending work, in one cheap read."""
        with self._database.read() as connection:
            return incidents.work(connection, now)

    def gather(self, gather: Gather, *, now: float, limit: int) -> int:
        """Turn up to ``limit`` events from the outbox into incidents, in one transaction.

        Every stored event passes here exactly once, in the order of its run. Returns the number.
        """
        with self._database.write() as connection:
            return incidents.gather(connection, gather, now, limit)

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or as soon as this process has stored events or is woken."""
        self._database.announced.wait(seconds)
        self._database.announced.clear()

    def wake(self) -> None:
        """End the `wait` of another thread."""
        self._database.announced.set()

    def marks(self) -> list[OpenIncident]:
        """Return what tells whether an open incident must be looked at, the oldest first.

        Cost: one statement over an index; no incident is read.
        """
        with self._database.read() as connection:
            return open_incidents.marks(connection)

    def open(self, chosen: Sequence[OpenIncident] | None = None) -> list[tuple[Incident, RunFacts]]:
        """Return open incidents with their runs: the ``chosen`` ones, or all, the oldest first."""
        with self._database.read() as connection:
            if chosen is None:
                chosen = open_incidents.marks(connection)
            return open_incidents.load(connection, chosen)

    def change(self, changes: Sequence[IncidentChange], *, now: float) -> int:
        """Store changed incidents in one transaction; return the number stored.

        Skips incidents that another process changed since they were read. ``revision`` must be one
        above the one read, or equal to it to add receivers only.
        """
        with self._database.write() as connection:
            incidents.lock(connection)
            return sum([incidents.change(connection, each, now) for each in changes])

    def forget(self) -> int:
        """Delete the oldest incidents that are over, of runs that have more than one may have.

        Returns how many.
        """
        with self._database.read() as connection:
            runs_over = incidents.overfull(connection, self._most)
        deleted = 0
        for run_id in runs_over:
            with self._database.write() as connection:
                deleted += incidents.forget(connection, run_id, self._most)
        return deleted

    def get(self, id_: int) -> Incident | None:
        """Return one incident, None if it does not exist."""
        with self._database.read() as connection:
            return incidents.load(connection, id_)

    def page(
        self,
        *,
        run: str | None = None,
        project: str | None = None,
        state: IncidentState | None = None,
        severity: Severity | None = None,
        sort: IncidentOrder = "newest",
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> tuple[list[Incident], tuple[int, int] | None]:
        """Return incidents and the key to continue ``after``, None at the end.

        Newest first, or the most severe first and among those the newest.
        """
        with self._database.read() as connection:
            return incidents.page(
                connection,
                run=run,
                project=project,
                state=state,
                severity=severity,
                sort=sort,
                limit=limit,
                after=after,
            )

    def acknowledge(
        self, id_: int, *, author: str, now: float, comment: str = ""
    ) -> Incident | None:
        """Record an acknowledgement (audit ``incident_acknowledged``); only the first counts."""
        with self._database.write() as connection:
            return incidents.acknowledge(connection, id_, author, now, comment)
