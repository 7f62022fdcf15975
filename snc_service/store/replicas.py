"""Which services are alive on one store, so that they divide what all of them would look for."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress
from typing import Final

from snc_service.store.sql.database.dialect import Database
from snc_service.store.types import EVERYTHING, RunShare, StoreError

BEAT_SECONDS: Final = 10.0  # between two beats: a write each
LEASE_SECONDS: Final = 35.0  # without a new beat the others take over
FORGET_SECONDS: Final = 600.0  # without a new beat the row of a dead service goes


class Replicas:
    """The services of a store. Each counts its beats in a row; who stops counting has gone.

    What counts is the own clock between two changes of a number, so clocks may differ. A service
    that is new believes every row for one lease. An engine that one service uses has no rows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._id = uuid.uuid4().hex
        self._beats: dict[str, tuple[int, float]] = {}  # (the number, since when it is that)
        self._next_beat = 0.0
        self._share = EVERYTHING
        self._lock = threading.Lock()

    def share(self) -> RunShare:
        """Return the share of this service; writes a beat if one is due. Raises `StoreError`."""
        with self._lock:
            if self._database.is_shared and time.monotonic() >= self._next_beat:
                self._beat()
                self._next_beat = time.monotonic() + BEAT_SECONDS
            return self._share

    def leave(self) -> None:
        """Let the others take over at once, if the store can be written."""
        with self._lock, suppress(StoreError):
            if self._next_beat:
                with self._database.write() as connection:
                    connection.execute("delete from replica where id = ?", (self._id,))

    def _beat(self) -> None:
        with self._database.write() as connection:
            connection.execute(
                "insert into replica (id, beat) values (?, 1) "
                "on conflict (id) do update set beat = replica.beat + 1",
                (self._id,),
            )
            rows = connection.execute("select id, beat from replica").fetchall()
            now = time.monotonic()
            self._beats = {
                each: known
                if (known := self._beats.get(each)) and known[0] == beat
                else (beat, now)
                for each, beat in rows
            }
            # A row that others forgot begins again, perhaps at the number that is known of it.
            self._beats[self._id] = (self._beats[self._id][0], now)
            gone = [e for e, (_, since) in self._beats.items() if now - since > FORGET_SECONDS]
            for each in gone:
                connection.execute("delete from replica where id = ?", (each,))
        alive = sorted(e for e, (_, since) in self._beats.items() if now - since < LEASE_SECONDS)
        self._share = RunShare(alive.index(self._id), len(alive))
