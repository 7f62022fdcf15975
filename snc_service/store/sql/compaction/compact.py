"""Folding: turns batches of the tail into tiles and rollups, one chunk of steps at a time.

A chunk is an aligned range of 1024 measuring intervals. It is folded in slices: as many layers of
as many metrics as one short transaction can write. Each slice is read and encoded from a snapshot;
then its tiles are written. With the last slice, exactly the batches that were read leave the tail.
Until then queries lay the tail over the tiles, so answers do not change, and a crash in between
loses only work. With row locks, one process at a time folds a run, and ingest does not wait for it.
The run's ``fold_epoch`` detects a second process in any case: it restarts from a new snapshot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import numpy as np

from snc_service.store import tiles
from snc_service.store.sql.compaction import rollups, slices
from snc_service.store.sql.compaction.due_chunks import Chunk, DueChunks
from snc_service.store.sql.compaction.rollups import Changes, TilePlace
from snc_service.store.sql.compaction.slices import ChunkPiece, TailBatch
from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.records import deletion, runs
from snc_service.store.sql.series import stored_tiles, tail, tail_summary
from snc_service.store.sql.series.checksums import TileKey
from snc_service.store.sql.series.layouts import LayerBook
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.sql.series.tail import UnreadableSteps, pack_steps
from snc_service.store.types import Floats, RunShare, Steps, StoreDamaged
from snc_service.wire import ABSENT, absent

DAMAGED_SECONDS = 300.0  # after which the folding of a damaged chunk is tried again
LEAVING_BYTES = 8 * 2**20  # per transaction that deletes from the tail


class Compactor:
    """Folds a store, one slice of each run in turn, so a wide run does not delay the others.

    The next call continues an unfinished chunk. Safe to call from any thread.
    """

    def __init__(
        self,
        database: Database,
        book: LayerBook,
        note: Callable[[StoreDamaged], None],
        settle: Callable[[Collection[str]], None],
    ) -> None:
        self._database = database
        self._book = book
        self._note = note
        self._settle = settle  # writes what follows from the rows of some runs
        # Chunks with damaged values, and the time (monotonic) of the next try: see `_turn`.
        self._damaged: dict[Chunk, float] = {}
        # One per run: two would start each other again for ever.
        self._jobs: dict[int, ChunkCompaction] = {}
        self._due = DueChunks()
        self._last_run = 0
        self._lock = threading.Lock()

    def fold(self, budget_s: float, now: float, share: RunShare) -> int:
        """Fold due chunks until the time is up, at least one slice; return the values folded."""
        with self._lock:
            return self._fold(time.monotonic() + budget_s, now, share)

    def _fold(self, deadline: float, now: float, share: RunShare) -> int:
        deletion.resume(self._database)
        with self._database.read() as connection:
            unknown = self._due.unknown(connection, share)
        self._summarise(unknown)
        with self._database.read() as connection:
            due, untrue = self._due.look(connection, now, share, self._last_run, self._is_sound)
        self._summarise(untrue)
        waiting: dict[int, deque[Chunk]] = {run_id: deque() for run_id in self._jobs}
        for chunk in due:
            job = self._jobs.get(chunk.run_id)
            if job is None or job.chunk != chunk:
                waiting.setdefault(chunk.run_id, deque()).append(chunk)
        # The runs in a circle, from where the last call stopped.
        turns = deque(sorted(waiting, key=lambda run_id: (run_id <= self._last_run, run_id)))
        num_values = 0
        try:
            while turns:
                run_id = self._last_run = turns.popleft()
                num_values += self._turn(run_id, waiting[run_id])
                if run_id in self._jobs or waiting[run_id]:
                    turns.append(run_id)
                if time.monotonic() >= deadline:
                    break
        finally:  # above all on a full disk
            self._database.checkpoint()
            self._database.reclaim(idle=not due)
        return num_values

    def _summarise(self, run_ids: Sequence[int]) -> None:
        for run_id in run_ids:
            with self._database.write() as connection:
                if runs.lock_number(connection, run_id):
                    tail_summary.summarise(connection, run_id)

    def _is_sound(self, chunk: Chunk) -> bool:
        if self._damaged.get(chunk, 0.0) > time.monotonic():
            return False
        self._damaged.pop(chunk, None)
        return True

    def _turn(self, run_id: int, waiting: deque[Chunk]) -> int:
        """Fold one slice of a run; a job that fails is restarted by another call."""
        job = self._jobs.pop(run_id, None)
        if job is None:
            job = ChunkCompaction(waiting.popleft())
            with self._database.read() as connection:
                names = connection.execute(
                    "select run from run where run_id = ?", (run_id,)
                ).fetchall()
            self._settle([run for (run,) in names])
        try:
            num_values = job.advance(self._database, self._book)
        except (StoreDamaged, UnreadableSteps) as error:
            # What is left of the chunk waits in the tail for a repair; all others are folded.
            if isinstance(error, StoreDamaged):
                self._note(error)
            self._damaged[job.chunk] = time.monotonic() + DAMAGED_SECONDS
            return 0
        if not job.is_over:
            self._jobs[run_id] = job
        return num_values


class ChunkCompaction:
    """The folding of one chunk. It holds no values and no transaction between slices."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.is_over = False  # also if another process folds the run, or the run was deleted
        self._epoch: int | None = None
        self._heads: list[TailBatch] = []
        self._left: deque[ChunkPiece] = deque()

    def advance(self, database: Database, book: LayerBook) -> int:
        """Fold the next slice; return its values, 0 if another process was faster."""
        chunk, self.is_over = self.chunk, True
        with database.read() as connection:
            # No other code writes this row. The reading transaction locks it until the tiles are
            # written; a lock on the run's own row would block ingest for as long.
            claimed = connection.execute(
                f"select run_id from run_config where run_id = ?{connection.skip_locked}",
                (chunk.run_id,),
            ).fetchone()
            row = connection.execute(
                "select fold_epoch from run where run_id = ? and coalesce(interval_shift, ?) = ?",
                (chunk.run_id, chunk.shift, chunk.shift),
            ).fetchone()
            if claimed is None or row is None or self._epoch not in (None, row[0]):
                return 0
            if self._epoch is None:
                # Whoever takes the run over replays the rows behind its checkpoint.
                upto = connection.execute(
                    "select upto from checkpoint where run_id = ?", (chunk.run_id,)
                ).fetchone()
                heads = slices.heads_of(connection, book, chunk)
                self._heads = [head for head in heads if upto and head.id <= upto[0]]
                if not self._heads:  # folded by another process since it became due
                    return 0
                self._left.extend(slices.cut_up(connection, chunk, self._heads))
            some = self._slice()
            changes = Changes()
            for place, steps, values in slices.blocks(connection, chunk, self._heads, some):
                _fold_block(connection, changes, chunk, place, steps, values)
            self._epoch = row[0]
            for folded in [[]] if self._left else _portions(self._heads):
                if not _write(database, chunk, self._epoch, folded, changes):
                    return 0
                self._epoch, changes = self._epoch + 1, Changes()
            self.is_over = not self._left
        return sum(
            int(slices.inside(head.steps, chunk).sum()) * len(picked.columns)
            for head in self._heads
            for piece in some
            if (picked := slices.picked_of(head.layout, piece)) is not None
        )

    def _slice(self) -> list[ChunkPiece]:
        """Return the next pieces, at least one."""
        num_steps = len(slices.steps_of(self._heads, self.chunk))
        some: list[ChunkPiece] = []
        size = 0
        while self._left:
            size += 4 * num_steps * (self._left[0].high - self._left[0].low)
            if some and size > slices.SLICE_BYTES:
                break
            some.append(self._left.popleft())
        return some


def _portions(heads: Sequence[TailBatch]) -> list[list[TailBatch]]:
    """Return the batches in portions, one per transaction, because freeing pages takes long."""
    portions: list[list[TailBatch]] = [[]]
    size = 0
    for head in heads:
        size += head.num_bytes
        if portions[-1] and size > LEAVING_BYTES:
            portions.append([])
            size = head.num_bytes
        portions[-1].append(head)
    return portions


def _write(
    database: Database, chunk: Chunk, epoch: int, folded: Sequence[TailBatch], changes: Changes
) -> bool:
    """Write tiles and delete ``folded`` from the tail; False if another process was faster."""
    with database.write() as connection:
        unchanged = connection.execute(
            "update run set fold_epoch = fold_epoch + 1, interval_shift = ? "
            "where run_id = ? and fold_epoch = ?",
            (chunk.shift, chunk.run_id, epoch),
        ).rowcount
        if unchanged:
            _take_from_tail(connection, chunk, folded)
            changes.apply(connection)
    return unchanged > 0


def _fold_block(
    connection: Connection,
    changes: Changes,
    chunk: Chunk,
    place: TilePlace,
    steps: Steps,
    values: Floats,
) -> None:
    """Merge the new values into the chunk's tile, if there is one, and roll the result up."""
    key = TileKey(place.run_id, place.attempt, place.metric, 0, place.block)
    row = connection.execute(
        f"select {stored_tiles.COLUMNS} from tile where run_id = ? and attempt = ? "
        "and metric = ? and level = ? and block = ? and step0 >= ? and step0 < ?",
        (*key, chunk.low, chunk.high),
    ).fetchone()
    if row is not None:
        tile = StoredTile(*row)
        changes.deleted.append((*key, tile.step0))
        steps, values = _laid_over(*stored_tiles.values(connection, key, tile), steps, values)
    form, data = tiles.encode(values)
    ends = (int(steps[0]), int(steps[-1]), len(steps))
    changes.put(place, 0, ends, (form, pack_steps(steps), data))
    rollups.add(connection, changes, place, chunk.low, steps, values, alone=row is None)


def _laid_over(
    old_steps: Steps, old: Floats, new_steps: Steps, new: Floats
) -> tuple[Steps, Floats]:
    steps = np.union1d(old_steps, new_steps)
    values = np.full((max(len(old), len(new)), len(steps)), ABSENT, np.float32)
    values[: len(old), np.searchsorted(steps, old_steps)] = old
    where = (slice(len(new)), np.searchsorted(steps, new_steps))
    values[where] = np.where(absent(new), values[where], new)
    return steps, values


def _take_from_tail(connection: Connection, chunk: Chunk, folded: Sequence[TailBatch]) -> None:
    """Delete folded batches; a batch that reaches beyond the chunk keeps its other steps."""
    gone = [head.id for head in folded if slices.inside(head.steps, chunk).all()]
    connection.executemany(
        "delete from tail where run_id = ? and id = ?", [(chunk.run_id, id_) for id_ in gone]
    )
    for head in folded:
        rest = ~slices.inside(head.steps, chunk)
        steps = head.steps[rest]
        if not len(steps):
            continue
        columns = tail.whole(connection, chunk.run_id, head.id, head.layout)[:, rest]
        tail.replace(
            connection, chunk.run_id, head.id, chunk.attempt, head.layout.number, steps, columns
        )
    if folded:
        tail_summary.summarise(connection, chunk.run_id)
