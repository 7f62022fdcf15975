"""The store: all persistent data of the service, in one collection per noun."""

from __future__ import annotations

from snc_service.store.collections.alert_routing import AlertRouting
from snc_service.store.collections.annotations import Annotations
from snc_service.store.collections.audit import AuditLog
from snc_service.store.collections.batches import Batches
from snc_service.store.collections.commands import CommandQueue
from snc_service.store.collections.deliveries import Deliveries
from snc_service.store.collections.documents import Documents
from snc_service.store.collections.events import Events
from snc_service.store.collections.histories import Histories
from snc_service.store.collections.incidents import Incidents
from snc_service.store.collections.runs import Runs
from snc_service.store.collections.silences import Silences
from snc_service.store.collections.tokens import Tokens
from snc_service.store.damages import Damages
from snc_service.store.replicas import Replicas
from snc_service.store.sql.compaction.compact import Compactor
from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.ingest.run_memory import RunMemory
from snc_service.store.sql.records import deletion
from snc_service.store.sql.records.documents import POLICIES, RULE_SETTINGS
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.standby import RunReads
from snc_service.store.types import EVERYTHING, Bounds, RunShare


class Store:
    """All collections of one database. Closing the store closes the database.

    Every method is synchronous and safe to call from any thread. Every write is one durable
    transaction. Times are Unix seconds (float64). Layers go by name; their indexes stay internal.
    """

    def __init__(
        self, database: Database, bounds: Bounds | None = None, standby: Database | None = None
    ) -> None:
        self.bounds = bounds = bounds or Bounds()
        book = LayerBook(bounds.run)
        self._database = database
        self.damages = Damages(database, book)
        memory = RunMemory()
        self.runs = Runs(database)
        self.batches = Batches(database, book, memory)
        self._reads = RunReads(database, standby)
        self.histories = Histories(self._reads, book, memory, self.damages.note)
        self._compactor = Compactor(database, book, self.damages.note, self.batches.settle)
        self.events = Events(database, bounds.run)
        self.policies = Documents(database, POLICIES, bounds)
        self.rule_settings = Documents(database, RULE_SETTINGS, bounds)
        self.annotations = Annotations(database, bounds.run)
        self.commands = CommandQueue(database, bounds.run)
        self.tokens = Tokens(database, bounds.store)
        self.audit = AuditLog(database)
        self.alert_routing = AlertRouting(database, bounds.store)
        self.incidents = Incidents(database, bounds.run)
        self.deliveries = Deliveries(database)
        self.silences = Silences(database, bounds.store)
        self.replicas = Replicas(database)
        deletion.resume_if_possible(database)

    def fold(self, budget_s: float, *, now: float, share: RunShare = EVERYTHING) -> int:
        """Compress recent history for about ``budget_s`` seconds; return the values compressed.

        Returns 0 when nothing of this ``share`` is due; without rules (`Batches.judge_with`) rows
        behind the last checkpoint stay as they are. Answers do not change, ingest continues, and a
        crash loses nothing. One background thread should call it about every second.
        """
        return self._compactor.fold(budget_s, now, share)

    def ping(self) -> list[str]:
        """Raise `StoreUnavailable` unless the database can be read and written.

        Return the nodes of a cluster that are away: the runs on them wait, all others do not.
        """
        with self._database.read() as connection:
            connection.execute("select 1").fetchone()
        self._database.check_writable()
        return self._database.away()

    def size_bytes(self) -> int:
        """Return the size on disk."""
        return self._database.size_bytes()

    def log_bytes(self) -> int:
        """Return the size of the embedded store's log, 0 on PostgreSQL."""
        return self._database.log_bytes()

    def close(self) -> None:
        """Close all connections; acknowledged data is already durable."""
        self.replicas.leave()
        self._reads.close()
        self._database.close()
