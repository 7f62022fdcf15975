"""Events of a store, of one run or of all."""

from __future__ import annotations

from collections.abc import Mapping

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    events,
    runs,
)
from snc_service.store.types import EventQuery, Page, RunBounds
from snc_service.wire import Severity


class Events:
    """Events by run and id. Each method is one transaction."""

    def __init__(self, database: Database, bounds: RunBounds) -> None:
        self._database = database
        self._most = bounds.events

    def page(self, query: EventQuery) -> Page:
        """Return one page of `StoredEvent`s."""
        with self._database.read() as connection:
            run_id = None if query.run is None else runs.number(connection, query.run)
            return events.page(connection, query, run_id)

    def counts(self) -> Mapping[tuple[str, str, Severity], int]:
        """Return the number of events of each (run, rule, severity)."""
        with self._database.read() as connection:
            return events.counts(connection)

    def forget(self) -> int:
        """Delete the oldest events of runs that have more than one may have; return how many.

        Their counts stay. Cost: a look at every run, and short transactions.
        """
        with self._database.read() as connection:
            runs_over = events.overfull(connection, self._most)
        deleted = 0
        for run_id, last in runs_over:
            gone = events.FORGOTTEN_AT_ONCE
            while gone == events.FORGOTTEN_AT_ONCE:
                with self._database.write() as connection:
                    gone = events.forget(connection, run_id, last)
                deleted += gone
        return deleted
