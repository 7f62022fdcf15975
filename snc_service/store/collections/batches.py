"""Batches of a store: layer tables and ingest."""

from __future__ import annotations

from collections.abc import Sequence

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.ingest.run_cache import RunGone, RunMemory
from snc_service.store.sql.ingest.transaction import ingest
from snc_service.store.sql.records import (
    runs,
)
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.types import (
    Advance,
    LayerTableUnknown,
    Outcome,
    Submission,
)
from snc_service.wire import LayerTable


class Batches:
    """Batches from jobs, and the layer tables they refer to. Each method is one transaction."""

    def __init__(self, database: Database, book: LayerBook) -> None:
        self._database = database
        self._book = book
        self._memory = RunMemory()

    def put_layer_table(self, run: str, table: LayerTable) -> None:
        """Register a table; the same one again changes nothing. Raises `RunUnknown`, `RunFull`."""
        with self._database.write() as connection:
            run_id = runs.lock(connection, run)
            version = runs.version(connection, run_id)
            is_new = self._book.put(connection, run_id, table)
        if is_new:
            self._memory.know_table(run, version)

    def layer_table(self, run: str, table_hash: str) -> LayerTable | None:
        """Return a registered table, None if the run has none with this hash."""
        with self._database.read() as connection:
            try:
                return self._book.table(connection, runs.number(connection, run), table_hash).table
            except LayerTableUnknown:
                return None

    def ingest(self, items: Sequence[Submission], advance: Advance) -> list[Outcome]:
        """Store submissions in one durable transaction; one bad item does not fail the others.

        Idempotent on (run, writer, seq). Each batch is stored with its events and the new detection
        state. Events come from detection, rewound steps (``rewound``) and ``dropped`` values.
        """
        while True:
            try:
                with self._database.write() as connection:
                    outcomes, works, mark = ingest(
                        connection, self._book, self._memory, items, advance
                    )
            except RunGone:  # again, with an empty memory
                continue
            self._memory.keep(works, mark)
            return outcomes

    def rule_state(self, run: str) -> bytes | None:
        """Return the detection state after the run's newest batch. Raises `RunUnknown`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            row = connection.execute(
                "select v from rule_state where run_id = ?", (run_id,)
            ).fetchone()
            return None if row is None else bytes(row[0])
