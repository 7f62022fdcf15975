"""Events of a store, of one run or of all."""

from __future__ import annotations

from collections.abc import Mapping

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    events,
    runs,
)
from snc_service.store.types import EventQuery, Page
from snc_service.wire import Severity


class Events:
    """Events by run and id. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, query: EventQuery) -> Page:
        """Return one page of `StoredEvent`s."""
        with self._database.read() as connection:
            run_id = None if query.run is None else runs.number(connection, query.run)
            return events.page(connection, query, run_id)

    def counts(self) -> Mapping[tuple[str, str, Severity], int]:
        """Return the number of events of each (run, rule, severity)."""
        with self._database.read() as connection:
            return events.counts(connection)
