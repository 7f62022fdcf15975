"""The routing of alerts in a store, version by version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from snc_service.store.sql.database.dialect import Connection, Database, Row
from snc_service.store.sql.records import (
    audit,
    incidents,
)
from snc_service.store.sql.records.documents import NEWEST
from snc_service.store.types import (
    ServiceFull,
    StoreBounds,
    VersionConflict,
    VersionedDocument,
)

Routing: TypeAlias = Mapping[str, Any]
_ROUTING = "select body, version, author, at from alerting where version < ? order by version desc"


class AlertRouting:
    """The routing document: which receivers get which incidents. Each method is one transaction."""

    def __init__(self, database: Database, bounds: StoreBounds) -> None:
        self._database = database
        self._most = bounds.routings

    def current(self) -> VersionedDocument[Routing]:
        """Return the document in force."""
        with self._database.read() as connection:
            return _current(connection)

    def put(
        self, body: Routing, *, author: str, now: float, if_version: int | None
    ) -> VersionedDocument[Routing]:
        """Store a new version (audit ``alerting_changed``).

        Raises `VersionConflict` and `ServiceFull`.
        """
        with self._database.write() as connection:
            incidents.lock(connection)
            current = _current(connection).version
            if if_version is not None and if_version != current:
                raise VersionConflict("routing of alerts", current)
            if current >= self._most:
                raise ServiceFull("versions of the routing", "routings", self._most, "alerting")
            stored = VersionedDocument(body, current + 1, "none", author, now)
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

    def versions(
        self, *, limit: int = 100, below: int = NEWEST
    ) -> list[VersionedDocument[Routing]]:
        """Return the versions below ``below``, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(f"{_ROUTING} limit ?", (below, limit)).fetchall()
        return [_stored(row) for row in rows]


def _current(connection: Connection) -> VersionedDocument[Routing]:
    row = connection.execute(f"{_ROUTING} limit 1", (NEWEST,)).fetchone()
    empty: Routing = {"receivers": {}, "routes": []}
    return VersionedDocument(empty, 0, "none", "", 0.0) if row is None else _stored(row)


def _stored(row: Row) -> VersionedDocument[Routing]:
    body, version, author, at = row
    return VersionedDocument(json.loads(body), version, "none", author, at)
