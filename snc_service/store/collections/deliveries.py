"""Deliveries of a store: the messages sent to each receiver, and the ones due."""

from __future__ import annotations

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

    def due(self, receiver: str, run: str, now: float) -> tuple[AlertDelivery, Incident] | None:
        """Return what is due of a run: its most severe incident, or the one due for longest."""
        with self._database.read() as connection:
            return incidents.due(connection, receiver, run, now)

    def claim(self, delivery: AlertDelivery, *, now: float, until: float) -> bool:
        """Reserve a delivery until it is saved or ``until``; False if it changed since the read."""
        with self._database.write() as connection:
            return incidents.claim(connection, delivery, now, until)

    def save(
        self, delivery: AlertDelivery, *, revision: int, now: float, hold_until: float | None = None
    ) -> None:
        """Store the result of a claimed delivery.

        It is due at once if its incident is no longer at ``revision``. ``hold_until`` postpones all
        other due deliveries of this receiver.
        """
        with self._database.write() as connection:
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
