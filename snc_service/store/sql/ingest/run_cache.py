"""The run cache: the data of a run that ingest needs, kept from one transaction to the next.

Every transaction locks and reads the run's row, unless the engine can tell that there was no other
write since the last. All other cached data is written only by ingest, and each change to it
increments the run's version. So the cache is valid while the version is the cached one, for
writes of this process and of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.ingest import writers
from snc_service.store.sql.ingest.derived import CHECKPOINT, COLD_BATCHES, SAVE, Derived, JudgedBy
from snc_service.store.sql.ingest.overlap import Overlap
from snc_service.store.sql.ingest.replay import TAIL, replay, resume, resume_terms
from snc_service.store.sql.ingest.standing import Standing
from snc_service.store.sql.ingest.writers import Writer
from snc_service.store.sql.records import events
from snc_service.store.sql.records.annotations import ANNOTATIONS
from snc_service.store.sql.records.documents import RULE_SETTINGS
from snc_service.store.sql.series import latest_values, tail_summary
from snc_service.store.sql.series.attempts import Attempts
from snc_service.store.sql.series.layouts import KnownTable, LayerBook
from snc_service.store.types import Detection, RunUnknown, StoredEvent, VersionedDocument
from snc_service.store.types.annotations import Annotation
from snc_service.wire import Batch, RuleSettings

MOST_OF_ONE_RUN = 50_000  # of them, but for the layer table that was used last
LAYER_BYTES = 200  # that a layer of a table takes, its name included
MOST_WRITERS = 64  # remembered of one run, and as many layouts
LEAST_LAYERS = 64  # what the smallest run costs
SMALL = 8  # layers that a writer counts as; and places of a list that count as a layer

_NUMBER = "select run_id from run_name where run = ?"
_LOCK = (
    "select run.run, run.state, run.updated_at, run.last_step, run.layers, run.breaches, "
    "run.rescales, run.guard_vetoes, run.dropped_values, run.overhead, run.loss, "
    "run.nonfinite_loss, run.next_event, "
    "run.next_tail, run.version, coalesce((select max(version) from run_policy where run_id = ?), "
    "(select max(version) from project_policy where project = run.project), 0), "
    "coalesce((select max(version) from run_rules where run_id = ?), "
    "(select max(version) from project_rules where project = run.project), 0) "
    "from run where run.run_id = ?"
)
_ROW = (
    "run", "state", "updated_at", "last_step", "layers", "breaches", "rescales", "guard_vetoes",
    "dropped_values", "overhead", "loss", "nonfinite_loss", "next_event", "next_tail", "version",
    "policy_version", "rules_version",
)  # fmt: skip
_SAVE_RUN = (
    "update run set state = ?, updated_at = ?, last_step = ?, breaches = ?, rescales = ?, "
    "guard_vetoes = ?, dropped_values = ?, overhead = ?, loss = ?, nonfinite_loss = ?, "
    "next_event = ?, next_tail = ?, pulse = ?, "
    "attempt = ?, worst_ratio = ?, worst_layer = ?, nonfinite_layers = ?, "
    f"{tail_summary.GROWS}, version = version + 1 where run_id = ?"
)
_SAVE_TAIL = (
    "insert into tail (run_id, id, attempt, layout, step0, step1, n, steps, received_at, "
    "size, v, crcs) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class RunGone(Exception):
    """A cached run was deleted; its name may belong to a new run by now."""


@dataclass(eq=False)
class RunAtWork:
    """One run while its batches are stored: read once, written once per transaction."""

    run_id: int
    # The row of the run.
    run: str = ""
    state: str = ""
    updated_at: float = 0.0
    last_step: int | None = None
    layers: int = 0
    breaches: int = 0
    rescales: int = 0
    guard_vetoes: int = 0
    dropped_values: int = 0
    overhead: float | None = None
    loss: float | None = None
    nonfinite_loss: int = 0
    next_event: int = 1
    next_tail: int = 1
    version: int = -1
    era: int = -1  # in which the row was read: see `RunMemory`
    policy_version: int = 0
    rules_version: int = 0
    # Cached while the version stays the same.
    attempts: Attempts = field(default_factory=lambda: Attempts(0, {}))
    derived: Derived = field(default_factory=Derived)
    terms: JudgedBy = field(default_factory=lambda: JudgedBy(RULE_SETTINGS.default, ()))
    writers: dict[str, Writer] = field(default_factory=dict)
    tables: dict[str, KnownTable] = field(default_factory=dict)
    layouts: dict[tuple[int, tuple[str, ...], tuple[str, ...]], int] = field(default_factory=dict)
    overlap: Overlap = field(default_factory=Overlap)
    commands_wait: bool = True
    rules: VersionedDocument[RuleSettings] = RULE_SETTINGS.nothing
    # To be written by this transaction.
    tail: list[Row] = field(default_factory=list)
    events: list[StoredEvent] = field(default_factory=list)
    moved_writers: set[str] = field(default_factory=set)
    moved_attempts: dict[int, float] = field(default_factory=dict)  # and time of the newest batch

    @property
    def cost(self) -> int:
        """Return the cost of caching the run, in layers."""
        tables = sum(len(known.layers) for known in self.tables.values())
        derived, num_notes = self.derived, len(self.terms.annotations)
        layers, num_bytes = derived.cost_layers, derived.cost_bytes
        small = len(self.attempts.first_steps) + num_notes + len(self.layouts)
        # A writer has the checksums of 64 batches, and a place for each layer that it reported.
        written = SMALL * len(self.writers) + sum(map(len, self.overlap.layers.values())) // SMALL
        return LEAST_LAYERS + tables + layers + num_bytes // LAYER_BYTES + small + written

    @property
    def needs_checkpoint(self) -> bool:
        """Return whether the transaction must write a checkpoint of the run."""
        return self.derived.needs_checkpoint(self.run_id, self.terms)

    def writer(self, connection: Connection, name: str) -> Writer:
        """Return a writer, a new one if the run has none of that name."""
        if name not in self.writers:
            self.writers[name] = writers.load(connection, self.run_id, name)
        return self.writers[name]

    def table(self, connection: Connection, book: LayerBook, table_hash: str) -> KnownTable:
        """Return a registered layer table. Raises `LayerTableUnknown`."""
        known = self.tables.pop(table_hash, None)
        if known is None:
            known = book.table(connection, self.run_id, table_hash)
        self.tables[table_hash] = known  # the last to be forgotten
        return known

    def layout(self, connection: Connection, book: LayerBook, table_id: int, batch: Batch) -> int:
        """Return the number of a batch's layout, registered at its first use."""
        key = (table_id, batch.metrics, batch.scalars)
        if key not in self.layouts:
            number = book.layout_number(connection, self.run_id, table_id, batch)
            self.layouts[key] = number
        return self.layouts[key]

    def settled(self) -> None:
        """Clear the pending writes after they were written."""
        for written in (self.tail, self.events, self.moved_writers, self.moved_attempts):
            written.clear()
        for remembered in (self.writers, self.layouts):
            while len(remembered) > MOST_WRITERS:
                del remembered[next(iter(remembered))]  # type: ignore[arg-type] # its own key
        while len(self.tables) > 1 and self.cost > MOST_OF_ONE_RUN:
            del self.tables[next(iter(self.tables))]
        derived = self.derived
        while len(derived.latest) > 1 and self.cost > MOST_OF_ONE_RUN:
            number = next(iter(derived.latest))
            if number in derived.touched:  # stored with the next batch
                derived.is_due = True
                break
            derived.forgotten.add(number)
            del derived.latest[number]


def locked(
    connection: Connection,
    book: LayerBook,
    known: Mapping[str, RunAtWork],
    era: int,
    runs: Collection[str],
    detection: Detection,
) -> dict[str, RunAtWork]:
    """Lock runs in the order of their numbers; return the existing ones in that order.

    The fixed order prevents deadlocks between processes. Raises `RunGone` if one that is ``known``
    was deleted.
    """
    new = [run for run in runs if run not in known]
    found = connection.fetch_each(_NUMBER, [(run,) for run in new])
    works = [known[run] for run in runs if run in known]
    works += [RunAtWork(int(rows[0][0])) for rows in found if rows]
    works.sort(key=lambda work: work.run_id)
    _check(connection, book, [work for work in works if work.era != era], era, detection)
    return {work.run: work for work in works if work.era == era}


def _check(
    connection: Connection, book: LayerBook, works: list[RunAtWork], era: int, detection: Detection
) -> None:
    """Read the rows of runs, and reload a run whose version changed; the rows then are of ``era``.

    Runs that do not exist stay unchanged.
    """
    lock = f"{_LOCK}{connection.for_update}"
    places = connection.fetch_each(lock, [(work.run_id,) * 3 for work in works])
    stale = []
    for work, rows in zip(works, places, strict=True):
        if not rows:
            if work.run:
                raise RunGone(work.run)
            continue
        version = work.version
        for name, value in zip(_ROW, rows[0], strict=True):
            setattr(work, name, value)
        work.era = era
        if work.version != version:
            stale.append(work)
    _load(connection, book, stale, detection)
    for work in works:
        if work.era == era and work.rules.version != work.rules_version:
            work.rules = RULE_SETTINGS.of_run(connection, work.run_id)
            work.terms = JudgedBy(work.rules.content, work.terms.annotations)


def unknown(run: str) -> RunUnknown:
    """Return the refusal of a batch for a run that does not exist."""
    return RunUnknown(f"there is no run {run!r}")


def _load(
    connection: Connection, book: LayerBook, works: list[RunAtWork], detection: Detection
) -> None:
    """Read the cached part of runs as the last ingest of any process left it."""
    keys = [(work.run_id,) for work in works]
    attempts = connection.fetch_each(Attempts.SELECT, keys)
    notes = connection.fetch_each(ANNOTATIONS, keys)
    for work, steps, marks in zip(works, attempts, notes, strict=True):
        work.attempts = Attempts(work.run_id, dict(steps))
        work.writers = {}
        work.terms = JudgedBy(work.terms.settings, tuple(Annotation(*row) for row in marks))
        work.commands_wait = True
    derive(connection, book, works, detection)


def derive(
    connection: Connection, book: LayerBook, works: list[RunAtWork], detection: Detection | None
) -> None:
    """Bring what follows from the rows of runs up to their newest rows; see `replay`.

    Of a run that is remembered only the rows are read that came since, unless they are folded.
    """
    keys = [(work.derived.upto, work.run_id) for work in works]
    anew: dict[int, RunAtWork] = {}
    for work, rows in zip(works, connection.fetch_each(CHECKPOINT, keys), strict=True):
        if not rows:  # before the first batch
            work.derived = Derived(upto=0)
            continue
        checkpoint, settings, number, state = rows[0]
        if state is not None:
            work.derived = Derived(upto=checkpoint)
            if detection is not None:
                resume(work.derived, detection, bytes(state), work.run)
            anew[work.run_id] = work
        work.derived.checkpoint = checkpoint
        if settings:  # none: the release before wrote the row, and all rows behind it are newer
            resume_terms(work.derived, settings, number, work.terms, work.run)
    newest = connection.fetch_each(latest_values.SELECT, [(run_id,) for run_id in anew])
    for work, rows in zip(anew.values(), newest, strict=True):
        work.derived.latest = latest_values.of_rows(work.run_id, rows)
        parts = work.derived.latest.values()
        work.derived.standing = Standing.of_tables(work.layers, parts)
    keys = [(work.run_id, work.derived.upto) for work in works]
    for work, rows in zip(works, connection.fetch_each(TAIL, keys), strict=True):
        run = (work.run_id, work.run, work.layers)
        replay(connection, book, work.derived, run, rows, detection)
        if work.run_id in anew and len(rows) >= COLD_BATCHES:
            work.derived.is_due = True


def save(connection: Connection, works: Iterable[RunAtWork]) -> None:
    """Write the changes: one statement per kind of row, for any number of runs."""
    changed = [work for work in works if work.tail]
    # Sorted by kind: rows of one kind are sent together, without waiting in between.
    runs = [_run_row(connection, work) for work in changed]
    with connection.together():
        for work in changed:
            if work.events:
                events.insert(connection, work.run_id, work.events)
        begun = [row for work in changed for row in work.attempts.rows(work.moved_attempts)]
        moved = [work.writers[name].row(work.run_id) for work in changed for name in _moved(work)]
        due = [work for work in changed if work.needs_checkpoint]
        new = [row for work in due for row in work.derived.latest_rows(work.run_id)]
        checkpoints = [work.derived.row(work.run_id, work.terms) for work in due]
        for statement, rows in (
            (Attempts.UPSERT, begun),
            (writers.UPSERT, moved),
            (_SAVE_TAIL, [row for work in changed for row in work.tail]),
            (latest_values.UPSERT, new),
            (SAVE, checkpoints),
            (_SAVE_RUN, runs),
        ):
            if rows:
                connection.executemany(statement, rows)
    for work in changed:
        work.version += 1


def checkpoint(connection: Connection, works: Iterable[RunAtWork]) -> None:
    """Write checkpoints of runs that have rows behind theirs; nothing else of them changes."""
    due = [work for work in works if work.derived.upto > work.derived.checkpoint]
    new = [row for work in due for row in work.derived.latest_rows(work.run_id)]
    rows = [work.derived.row(work.run_id, work.derived.terms or work.terms) for work in due]
    connection.executemany(latest_values.UPSERT, new)
    connection.executemany(SAVE, rows)


def _moved(work: RunAtWork) -> list[str]:
    return sorted(work.moved_writers)


def _run_row(connection: Connection, work: RunAtWork) -> Row:
    return (
        work.state,
        work.updated_at,
        work.last_step,
        work.breaches,
        work.rescales,
        work.guard_vetoes,
        work.dropped_values,
        work.overhead,
        work.loss,
        work.nonfinite_loss,
        work.next_event,
        work.next_tail,
        None if work.derived.rules is None else work.derived.rules.pulse(),
        work.attempts.newest,
        *_worst(connection, work),
        *tail_summary.growth(work.tail),
        work.run_id,
    )


def _worst(connection: Connection, work: RunAtWork) -> tuple[float | None, str | None, int]:
    """Return the largest newest ratio, its layer, and how many layers have a non-finite sigma."""
    ratio, layer, num_nonfinite = work.derived.standing.worst()
    return ratio, None if ratio is None else _name(connection, work, layer), num_nonfinite


def _name(connection: Connection, work: RunAtWork, layer: int) -> str:
    for known in work.tables.values():
        if layer < len(known.layers) and known.layers[layer] == layer:  # the usual case
            return known.table.names[layer]
    (name,) = connection.execute(
        "select name from layer where run_id = ? and layer = ?", (work.run_id, layer)
    ).fetchone()
    return str(name)
