"""Silences of a store: events that notify no receiver for a while."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    audit,
    incidents,
)
from snc_service.store.types import ServiceFull, StoreBounds
from snc_service.store.types.incidents import (
    Silence,
)

FORGOTTEN_SECONDS: Final = 86_400.0  # after its end: a clock that goes back finds it again
_SILENCE = "select id, project, run, rule, layer, until, comment, author, at from silence"


class Silences:
    """Silences by id. Each method is one transaction."""

    def __init__(self, database: Database, bounds: StoreBounds) -> None:
        self._database = database
        self._most = bounds.silences

    def active(self, now: float) -> list[Silence]:
        """Return the silences that have not ended, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(f"{_SILENCE} where until > ? order by id desc", (now,))
            return [Silence(*row) for row in rows]

    def add(self, silence: Silence) -> Silence:
        """Store a silence (audit ``silence_added``) and return it with its id.

        Those that ended a day ago are forgotten. Raises `ServiceFull`.
        """
        with self._database.write() as connection:
            incidents.lock(connection)  # counts and adds one at a time
            ended = (silence.at - FORGOTTEN_SECONDS,)
            connection.execute("delete from silence where until <= ?", ended)
            (count,) = connection.execute("select count(*) from silence").fetchone()
            if count >= self._most:
                raise ServiceFull("silences", "silences", self._most, field="silence")
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

    def delete(self, id_: int, *, author: str, now: float) -> bool:
        """End a silence now (audit ``silence_deleted``); False if it does not exist."""
        with self._database.write() as connection:
            incidents.lock(connection)
            deleted = connection.execute("delete from silence where id = ?", (id_,)).rowcount
            if deleted:
                # Held deliveries become due; those that another silence covers are held again.
                connection.execute(
                    "update delivery set next_at = ?, silenced = 0 where silenced = 1", (now,)
                )
                audit.append(connection, "silence_deleted", str(id_), author=author, now=now)
            return deleted > 0
