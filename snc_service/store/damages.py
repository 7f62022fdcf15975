"""Damage of a store: found by reads, by compaction and by verification; dropped by repair."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from snc_service.store.sql.compaction import repair
from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.queries import verification
from snc_service.store.sql.records import damages
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.types import Repaired, StoreDamaged, StoreError, Verified

log = logging.getLogger(__name__)


class Damages:
    """Stored values that are not what was stored. What is found is remembered until it is gone."""

    def __init__(self, database: Database, book: LayerBook) -> None:
        self._database = database
        self._book = book
        self._known: set[tuple[str, str]] = set()  # noted by this process
        self._engine: tuple[str, ...] = ()  # what the last verification heard from the engine

    def note(self, error: StoreDamaged) -> None:
        """Remember damage: once per place an event ``damaged`` of its run, and a line in the log.

        Never raises a `StoreError`: whoever found the damage has an error to raise.
        """
        if (error.run, error.place) in self._known:
            return
        log.error("%s", error)
        try:
            with self._database.write() as connection:
                damages.record(connection, error, time.time())
            self._known.add((error.run, error.place))
        except StoreError as why:
            log.warning("the damage could not be noted: %s", why)

    def count(self) -> int:
        """Return how many damaged places are known and not repaired; lost commits are one."""
        with self._database.read() as connection:
            known = damages.count(connection)
        return known + (len(self._engine) or self._database.lost() is not None)

    def verify(self) -> Verified:
        """Read everything and compare checksums. Ingest continues; each read is short.

        Notes what it finds. Cost: one read of the store, and 12 us per tile.
        """
        verified = verification.verify(self._database, self._book)
        for error in verified.damaged:
            self.note(error)
        for sentence in verified.engine:
            log.error("the store is damaged: %s", sentence)
        self._engine = verified.engine
        return verified

    def repair(self, *, now: float) -> Iterator[Repaired]:
        """Drop damaged values, place by place; yield what was dropped (audit ``run_repaired``).

        Dropped are a tile (its min, max and mean of every 32 measured steps stay), a rollup, which
        is made anew from the tiles where they are there, or the damaged blocks of a batch.
        """
        for finding in repair.repair(self._database, self._book, now):
            self._known.discard((finding.damage.run, finding.damage.place))
            yield finding
