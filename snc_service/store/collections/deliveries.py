"""Deliveries of a store: the messages sent to each receiver, and the ones due."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    incidents,
)
from snc_service.store.types.incidents import (
    AlertDelivery,
    DueRun,
    Incident,
    ReceiverHealth,
)


class Deliveries:
    """One row per receiver and incident. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, receiver: str, now: float) -> list[DueRun]:
        """Return the runs of which something is due to the receiver."""
        with self._database.read() as connection:
            return incidents.waiting(connection, receiver, now)

    def due(
        self, receiver: str, run: str, now: float, *, limit: int = 1
    ) -> list[tuple[AlertDelivery, Incident]]:
        """Return what is due of a run: its most severe incidents, of those due for longest."""
        with self._database.read() as connection:
            return incidents.due(connection, receiver, run, now, limit)

    def claim(self, deliveries: Sequence[AlertDelivery], *, now: float, until: float) -> list[bool]:
        """Reserve deliveries until they are saved or ``until``; False: changed since the read."""
        with self._database.write() as connection:
            incidents.lock(connection)
            return [incidents.claim(connection, each, now, until) for each in deliveries]

    def save(
        self,
        results: Iterable[tuple[AlertDelivery, int]],
        *,
        now: float,
        hold_until: float | None = None,
    ) -> None:
        """Store the results of claimed deliveries, each with the revision that was told.

        One is due at once if its incident is at another revision. ``hold_until`` postpones all
        other due deliveries of the same receivers.
        """
        with self._database.write() as connection:
            incidents.lock(connection)
            for delivery, revision in results:
                incidents.save_delivery(connection, delivery, revision, now, hold_until)

    def wake(self, now: float) -> None:
        """Make every waiting delivery due now, except those that silences hold.

        Needed after the clock went back: times set before lie too far ahead.
        """
        with self._database.write() as connection:
            incidents.lock(connection)
            connection.execute(
                "update delivery set next_at = ?, claimed_until = null "
                "where next_at is not null and silenced = 0",
                (now,),
            )

    def health(self) -> list[ReceiverHealth]:
        """Return the delivery health of each receiver that ever had a delivery."""
        with self._database.read() as connection:
            return incidents.health(connection)
