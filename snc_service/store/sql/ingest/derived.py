"""What follows from the rows of a run: what its rules remember, and its newest values.

Both are functions of the rows alone, so they are kept in memory and not written with every batch. A
checkpoint holds them as of one row of the tail. Whoever takes a run over reads the checkpoint and
replays the rows behind it, which compaction leaves in the tail until a checkpoint includes them.

Rules judge by settings and annotations, and begin anew with an attempt. A batch that meets other
ones than the checkpoint writes the next checkpoint, so all rows behind one were judged alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.ingest.standing import Standing
from snc_service.store.sql.series import latest_values
from snc_service.store.sql.series.latest_values import Newest
from snc_service.store.sql.series.layouts import Indexes, KnownTable
from snc_service.store.types import RunDetection
from snc_service.store.types.annotations import Annotation
from snc_service.wire import Batch, RuleSettings

MOST_BATCHES: Final = 64  # between two checkpoints: 10 to 20 ms of replay
MOST_BYTES: Final = 2**20  # of values; more where a checkpoint itself is large
TIMES_ITSELF: Final = 4
COLD_BATCHES: Final = 4  # replayed from a checkpoint: a run that is forgotten again and again

# Parameters: what is remembered already includes this row, -1 for nothing; and the run.
CHECKPOINT: Final = (
    "select upto, settings, annotations, case when upto > ? then v end "
    "from checkpoint where run_id = ?"
)
SAVE: Final = (
    "insert into checkpoint (run_id, upto, settings, annotations, v) values (?, ?, ?, ?, ?) "
    "on conflict (run_id) do update set upto = excluded.upto, settings = excluded.settings, "
    "annotations = excluded.annotations, v = excluded.v"
)


@dataclass(frozen=True)
class JudgedBy:
    """The terms by which rules judge the rows of a run."""

    settings: RuleSettings
    annotations: tuple[Annotation, ...]

    @classmethod
    def stored(cls, settings: str, number: int, annotations: Collection[Annotation]) -> JudgedBy:
        """Return those of a checkpoint; annotations are numbered and never change."""
        known = tuple(each for each in annotations if each.id <= number)
        return cls(RuleSettings.parse(json.loads(settings)), known)


@dataclass(eq=False)
class Derived:
    """What follows from the rows of a run up to ``upto``; `run_cache` replays what is missing."""

    upto: int = -1  # the last row of the tail that it includes; -1: nothing was read yet
    checkpoint: int = -1  # the same of the checkpoint; -1: there is none
    terms: JudgedBy | None = None  # of the checkpoint and the rows behind it; None: not known
    rules: RunDetection | None = None
    latest: dict[int, tuple[Indexes, Newest]] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)  # tables whose newest values are stored only
    standing: Standing = field(default_factory=lambda: Standing.of_tables(0, []))
    touched: set[int] = field(default_factory=set)  # tables with values newer than the checkpoint
    num_bytes: int = 0  # of the values behind the checkpoint
    is_due: bool = False

    def renew(
        self,
        connection: Connection,
        run_id: int,
        num_layers: int,
        table: KnownTable,
        batch: Batch,
        attempt: int,
    ) -> None:
        """Lay the values of the run's next batch over the newest ones."""
        self.num_bytes += 4 * batch.num_values
        if not batch.metrics or not batch.num_layers:
            return
        old = self._newest(connection, run_id, table)
        new = old.overlaid(latest_values.of_batch(batch, attempt), slice(None))
        self.latest[table.number] = (table.layers, new)
        self.standing = self.standing.renewed(num_layers, table.layers, new)
        self.touched.add(table.number)

    def _newest(self, connection: Connection, run_id: int, table: KnownTable) -> Newest:
        """Take the newest values of a layer table, none before its first batch."""
        if table.number in self.latest:
            return self.latest.pop(table.number)[1]
        if table.number in self.forgotten:
            self.forgotten.discard(table.number)
            return latest_values.of_table(connection, run_id, table.number, len(table.layers))
        return Newest.empty(len(table.layers))

    @property
    def cost_bytes(self) -> int:
        """Return the size in memory of all but the steps of the newest values."""
        newest = sum(each.values.nbytes for _, each in self.latest.values())
        rules = 0 if self.rules is None else self.rules.num_bytes
        return newest + self.standing.newest.values.nbytes + rules

    @property
    def cost_layers(self) -> int:
        """Return the layers of all newest values."""
        layers = sum(len(each.steps) for _, each in self.latest.values())
        return layers + len(self.standing.newest.steps)

    def needs_checkpoint(self, run_id: int, terms: JudgedBy) -> bool:
        """Return whether the transaction must write a checkpoint.

        Each run has its own turn, or all runs that began together would write theirs together.
        """
        if self.is_due or self.checkpoint < 0:
            return True
        if terms is not self.terms and terms != self.terms:
            return True
        self.terms = terms  # the same object, which is compared faster
        turns = (self.upto + run_id) // MOST_BATCHES - (self.checkpoint + run_id) // MOST_BATCHES
        return turns > 0 or (
            self.num_bytes > MOST_BYTES and self.num_bytes > TIMES_ITSELF * self.cost_bytes
        )

    def latest_rows(self, run_id: int) -> list[Row]:
        """Return the rows of the newest values that a checkpoint writes."""
        return [
            latest_values.row(run_id, table, self.latest[table][1])
            for table in sorted(self.touched)
        ]

    def row(self, run_id: int, terms: JudgedBy) -> Row:
        """Return the row of a checkpoint, and count as written from now on."""
        state = b"" if self.rules is None else self.rules.dump()
        number = max((each.id for each in terms.annotations), default=0)
        self.checkpoint, self.terms = self.upto, terms
        self.touched.clear()
        self.num_bytes, self.is_due = 0, False
        return (run_id, self.upto, terms.settings.text, number, state)
