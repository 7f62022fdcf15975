"""Batches of a store: layer tables and ingest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.ingest.derived import JudgedBy
from snc_service.store.sql.ingest.run_cache import (
    RunAtWork,
    RunGone,
    checkpoint,
    derive,
    locked,
)
from snc_service.store.sql.ingest.run_memory import RunMemory
from snc_service.store.sql.ingest.transaction import ingest
from snc_service.store.sql.records import (
    runs,
)
from snc_service.store.sql.records.annotations import annotations_of
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.types import (
    Detection,
    LayerTableUnknown,
    Outcome,
    StoreError,
    Submission,
    Together,
    one_by_one,
)
from snc_service.wire import LayerTable, RuleSettings

SETTLED_AT_ONCE: Final = 64  # runs per transaction


class Batches:
    """Batches from jobs, and the layer tables they refer to. Each method is one transaction."""

    def __init__(self, database: Database, book: LayerBook, memory: RunMemory) -> None:
        self._database = database
        self._book = book
        self._memory = memory
        self._detection: Detection | None = None
        self._together: Together = one_by_one

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

    def judge_with(self, detection: Detection, together: Together = one_by_one) -> None:
        """Let these rules judge what is ingested: before the first batch, and the same for ever.

        ``together`` judges the rows of several runs at once, with the same result.
        """
        self._detection, self._together = detection, together

    def ingest(self, items: Sequence[Submission]) -> list[Outcome]:
        """Store submissions in one durable transaction; one bad item does not fail the others.

        Idempotent on (run, writer, seq). Each batch is stored with its events, and its rows are
        what the detection state follows from. Events come from detection, rewound steps
        (``rewound``) and ``dropped`` values.
        """
        if not self._database.is_sharded:
            return self._ingest(items)
        return self._ingest_by_run(items)

    def _ingest_by_run(self, items: Sequence[Submission]) -> list[Outcome]:
        """Store each run in a transaction of its own: a node that is away refuses its runs only."""
        by_run: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            by_run.setdefault(item.run, []).append(place)
        outcomes: dict[int, Outcome] = {}
        for places in by_run.values():
            try:
                found = self._ingest([items[place] for place in places])
            except StoreError as error:
                found = [Outcome(error=error)] * len(places)
            outcomes.update(zip(places, found, strict=True))
        return [outcomes[place] for place in range(len(items))]

    def _ingest(self, items: Sequence[Submission]) -> list[Outcome]:
        refused: dict[int, StoreError] = {}
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < len(items):  # again for runs on which the rules failed
            left = {place: item for place, item in enumerate(items) if place not in outcomes}
            try:
                with self._database.write() as connection:
                    found, works, mark = ingest(
                        connection,
                        self._book,
                        self._memory,
                        left,
                        (self._rules, self._together),
                        refused,
                    )
                self._memory.keep(works, mark)
                outcomes |= found
            except RunGone:  # again, with an empty memory
                continue
            except StoreError as error:
                if not outcomes:
                    raise
                outcomes |= {place: Outcome(error=error) for place in left}  # the others are stored
            finally:
                self._memory.let_go(item.run for item in left.values())
        return [outcomes[place] for place in range(len(items))]

    @property
    def _rules(self) -> Detection:
        if self._detection is None:
            raise RuntimeError("judge_with must be called before batches are ingested")
        return self._detection

    def settle(self, runs_: Collection[str] | None = None) -> None:
        """Write what follows from the rows of some runs, of all remembered ones by default.

        Compaction does it before rows leave the tail, and a service before it ends: the next one
        has nothing to replay. Answers do not change. Without rules nothing is written.
        """
        names = sorted(self._memory.runs() if runs_ is None else runs_)
        most = 1 if self._database.is_sharded else SETTLED_AT_ONCE
        for start in range(0, len(names) if self._detection else 0, most):
            self._settle(names[start : start + most])

    def _settle(self, names: Sequence[str]) -> None:
        try:
            with self._database.write() as connection:
                # Not before: ingest may store more of these runs while this waits for its turn.
                known = self._memory.take(names)
                remembered = set(known)
                mark = connection.mark()
                era = self._memory.era(mark)
                works = locked(connection, self._book, known, era, names, self._rules)
                checkpoint(connection, works.values())
            self._memory.keep([work for run, work in works.items() if run in remembered], mark)
        except RunGone:  # nothing of it is left to write; the others have their turn later
            pass
        finally:
            self._memory.let_go(names)

    def rule_state(self, run: str) -> bytes | None:
        """Return the detection state after the run's newest batch. Raises `RunUnknown`.

        Cost: up to 64 batches are judged again.
        """
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            layers = len(self._book.specs(connection, run_id))
            notes = tuple(annotations_of(connection, run_id))
            work = RunAtWork(run_id, run, layers=layers, terms=JudgedBy(RuleSettings(), notes))
            derive(connection, self._book, [work], self._rules)
            return None if work.derived.rules is None else work.derived.rules.dump()
