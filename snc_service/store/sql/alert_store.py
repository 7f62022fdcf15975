"""`SqlAlerts`: the part of `SqlStore` that is about alerts; each method is one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from snc_service.store.protocol import AlertingConflict
from snc_service.store.protocol.incidents import (
    Change,
    Delivery,
    Gather,
    Health,
    Incident,
    IncidentState,
    RunFacts,
    Silence,
    StoredAlerting,
    Work,
)
from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.records import audit, incidents

NO_ALERTING = StoredAlerting({"receivers": {}, "routes": []}, 0, "", 0.0)
_ALERTING = "select body, version, author, at from alerting order by version desc"
_SILENCE = "select id, project, run, rule, layer, until, comment, author, at from silence"


class SqlAlerts:
    """An `AlertStore` over ``_database``."""

    _database: Database

    def alerting(self) -> StoredAlerting:
        """See `AlertStore.alerting`."""
        with self._database.read() as connection:
            return _alerting(connection)

    def put_alerting(
        self, body: Mapping[str, Any], *, author: str, now: float, if_version: int | None
    ) -> StoredAlerting:
        """See `AlertStore.put_alerting`."""
        with self._database.write() as connection:
            incidents.lock(connection)
            current = _alerting(connection).version
            if if_version is not None and if_version != current:
                raise AlertingConflict(current)
            stored = StoredAlerting(body, current + 1, author, now)
            connection.execute(
                "insert into alerting (version, body, author, at) values (?, ?, ?, ?)",
                (stored.version, json.dumps(body), author, now),
            )
            audit.append(
                connection,
                "alerting_changed",
                "alerting",
                author=author,
                now=now,
                detail=f"version {stored.version}",
            )
            return stored

    def alerting_versions(self) -> list[StoredAlerting]:
        """See `AlertStore.alerting_versions`."""
        with self._database.read() as connection:
            rows = connection.execute(_ALERTING).fetchall()
        return [StoredAlerting(json.loads(body), *rest) for body, *rest in rows]

    def alert_work(self, now: float) -> Work:
        """See `AlertStore.alert_work`."""
        with self._database.read() as connection:
            return incidents.work(connection, now)

    def gather_events(self, gather: Gather, *, now: float, limit: int) -> int:
        """See `AlertStore.gather_events`."""
        with self._database.write() as connection:
            return incidents.gather(connection, gather, now, limit)

    def open_incidents(self) -> list[tuple[Incident, RunFacts]]:
        """See `AlertStore.open_incidents`."""
        with self._database.read() as connection:
            return incidents.opened(connection)

    def change_incidents(self, changes: Sequence[Change], *, now: float) -> int:
        """See `AlertStore.change_incidents`."""
        with self._database.write() as connection:
            incidents.lock(connection)
            return sum([incidents.change(connection, each, now) for each in changes])

    def incident(self, id_: int) -> Incident | None:
        """See `AlertStore.incident`."""
        with self._database.read() as connection:
            return incidents.load(connection, id_)

    def incidents(
        self,
        *,
        run: str | None = None,
        project: str | None = None,
        state: IncidentState | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> tuple[list[Incident], int | None]:
        """See `AlertStore.incidents`."""
        with self._database.read() as connection:
            return incidents.page(
                connection, run=run, project=project, state=state, limit=limit, after=after
            )

    def acknowledge(
        self, id_: int, *, author: str, now: float, comment: str = ""
    ) -> Incident | None:
        """See `AlertStore.acknowledge`."""
        with self._database.write() as connection:
            return incidents.acknowledge(connection, id_, author, now, comment)

    def due_delivery(self, receiver: str, now: float) -> tuple[Delivery, Incident] | None:
        """See `AlertStore.due_delivery`."""
        with self._database.read() as connection:
            return incidents.due(connection, receiver, now)

    def claim_delivery(self, delivery: Delivery, *, now: float, until: float) -> bool:
        """See `AlertStore.claim_delivery`."""
        with self._database.write() as connection:
            return incidents.claim(connection, delivery, now, until)

    def save_delivery(
        self, delivery: Delivery, *, revision: int, now: float, hold_until: float | None = None
    ) -> None:
        """See `AlertStore.save_delivery`."""
        with self._database.write() as connection:
            incidents.save_delivery(connection, delivery, revision, now, hold_until)

    def wake_deliveries(self, now: float) -> None:
        """See `AlertStore.wake_deliveries`."""
        with self._database.write() as connection:
            incidents.lock(connection)
            connection.execute(
                "update delivery set next_at = ?, claimed_until = null "
                "where next_at is not null and silenced = 0",
                (now,),
            )

    def receiver_health(self) -> list[Health]:
        """See `AlertStore.receiver_health`."""
        with self._database.read() as connection:
            return incidents.health(connection)

    def silences(self, now: float) -> list[Silence]:
        """See `AlertStore.silences`."""
        with self._database.read() as connection:
            rows = connection.execute(f"{_SILENCE} where until > ? order by id desc", (now,))
            return [Silence(*row) for row in rows]

    def add_silence(self, silence: Silence) -> Silence:
        """See `AlertStore.add_silence`."""
        with self._database.write() as connection:
            (id_,) = connection.execute(
                "insert into silence (project, run, rule, layer, until, comment, author, at) "
                "values (?, ?, ?, ?, ?, ?, ?, ?) returning id",
                (
                    silence.project,
                    silence.run,
                    silence.rule,
                    silence.layer,
                    silence.until,
                    silence.comment,
                    silence.author,
                    silence.at,
                ),
            ).fetchone()
            audit.append(
                connection, "silence_added", str(id_), author=silence.author, now=silence.at
            )
            return replace(silence, id=int(id_))

    def delete_silence(self, id_: int, *, author: str, now: float) -> bool:
        """See `AlertStore.delete_silence`."""
        with self._database.write() as connection:
            incidents.lock(connection)
            deleted = connection.execute("delete from silence where id = ?", (id_,)).rowcount
            if deleted:
                # Whatever was held back may be told now; what another silence covers waits again.
                connection.execute(
                    "update delivery set next_at = ?, silenced = 0 where silenced = 1", (now,)
                )
                audit.append(connection, "silence_deleted", str(id_), author=author, now=now)
            return deleted > 0


def _alerting(connection: Connection) -> StoredAlerting:
    row = connection.execute(f"{_ALERTING} limit 1").fetchone()
    if row is None:
        return NO_ALERTING
    body, *rest = row
    return StoredAlerting(json.loads(body), *rest)
