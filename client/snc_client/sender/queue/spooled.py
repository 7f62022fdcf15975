"""SpooledRows: rows that survive their process, written to the spool at once and read from there.

A thread of its own writes, so that a row is in the log within milliseconds even if the network is
down. The log's note records the batch being sent: if the process dies, that batch is sent again as
the same bytes under the same sequence number.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from snc_client.layer_row import LayerRow
from snc_client.sender.backoff import EndState
from snc_client.sender.queue import spool_directory
from snc_client.sender.queue.batching import Frame, Packer
from snc_client.sender.queue.memory import RowQueue
from snc_client.sender.queue.spool_codec import packed, unpacked
from snc_client.spool import Spool

_log = logging.getLogger("snc")
WRITE_ROWS = 64  # in one write
RETRY_SECONDS = 1.0  # after a failed write


@dataclass(frozen=True)
class Progress:
    """The log's note: the progress of the delivery, from which a later process continues."""

    settled: int = 0  # rows before this index are acknowledged, given up or dropped
    packed: int = 0  # rows of the batch being sent, from that index on
    seq: int = -1  # of that batch, or of the last one
    skipped: int = 0
    dropped: int = 0
    attempt: int | None = None
    last_step: int = -1  # of the last batch
    end: EndState | None = None

    @classmethod
    def read(cls, note: bytes) -> Progress:
        """Return the progress in a `note`; that of the beginning for an empty one."""
        return cls(**json.loads(note)) if note else cls()

    def note(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(asdict(self)).encode()


class SpooledRows:
    """The rows of one job in a spool, with the methods of `RowQueue`.

    While the disk fails, rows wait in ``memory`` and may be sent from there. ``wake`` wakes the
    sender thread: for the first waiting row, and from ``batch_steps`` rows on.
    """

    def __init__(
        self,
        memory: RowQueue,
        open_spool: Callable[[], Spool],
        metrics: Sequence[str],
        num_layers: int,
        *,
        wake: Callable[[], None] = lambda: None,
        batch_steps: int = 1,
    ) -> None:
        self._memory = memory
        self._open_spool = open_spool
        self._metrics, self._num_layers = metrics, num_layers
        self._wake = wake
        self._batch_steps = batch_steps
        self._spool: Spool | None = None
        self._progress = Progress()
        self._lock = threading.RLock()  # for the move from memory to the spool
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False  # the writing thread
        self._closed = False  # everything: another process may have the folder now
        self._complained = False
        self._held: tuple[int, LayerRow] | None = None  # read, and left for the next batch
        self._taken: list[int] = []  # indices of the rows of the batch being sent

    # The training thread
    def put(self, row: LayerRow) -> int:
        """Queue a row for the writing thread. Returns 0: that thread wakes the sender thread."""
        if self._memory.put(row):
            self._bell.put(None)
        return 0

    def refuse(self, num_values: int) -> None:
        """Count values of a row that could never be sent."""
        self._memory.refuse(num_values)

    # The writing thread
    def write_until_closed(self) -> None:
        """Move rows into the spool as they arrive."""
        wait: float | None = None
        while not self._stopping:
            try:
                self._bell.get(timeout=wait)
            except queue.Empty:
                pass
            before = len(self) - len(self._memory)
            wait = None if self.write() else RETRY_SECONDS
            if before == 0 or len(self) >= self._batch_steps:
                self._wake()

    def write(self) -> bool:
        """Move the rows in memory into the spool; return False if the disk fails."""
        with self._lock:
            try:
                spool = self.opened()
                while rows := self._memory.take_all(WRITE_ROWS):
                    try:
                        spool.append([(packed(row), row.num_values) for row in rows])
                    except OSError:
                        self._memory.put_back(rows)
                        raise
            except OSError as error:
                self._complain(error)
                return False
            return True

    def opened(self) -> Spool:
        """Return the spool, opened and read on first use. Raises `OSError`."""
        with self._lock:
            if self._spool is None:
                spool = self._open_spool()
                self._progress = Progress.read(spool.note)
                while len(spool) and spool.position < self._progress.settled:
                    spool.next()
                self._spool = spool
            return self._spool

    # The sender thread
    def __len__(self) -> int:
        spooled = len(self._spool) if self._spool is not None else 0
        return spooled + (self._held is not None) + len(self._memory)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the rows that wait."""
        return 4 * self.kept_values + self._memory.num_bytes

    @property
    def dropped_values(self) -> int:
        """Return how many values were pushed out of memory or of the spool."""
        spooled = self._spool.dropped_weight if self._spool is not None else 0
        return self._memory.dropped_values + spooled

    @property
    def kept_values(self) -> int:
        """Return how many values wait in the spool, without those of the batch being sent."""
        spooled = self._spool.unread_weight if self._spool is not None else 0
        return spooled + (self._held[1].num_values if self._held is not None else 0)

    @property
    def end(self) -> EndState | None:
        """Return how the job ended, if the log records it."""
        return self._progress.end

    def take(self, *, after: int | None, max_bytes: int) -> LayerRow | None:
        """Return the oldest row if its step is above ``after`` and it fits; None otherwise."""
        if self._closed:
            return None
        found = self._held or self._next()
        if found is None and len(self._memory):
            if not self.write():
                # Rows that the disk did not take, after all those that it took before.
                return self._memory.take(after=after, max_bytes=max_bytes)
            found = self._next()
        self._held = None
        if found is None:
            return None
        index, row = found
        if after is not None and (row.step <= after or row.num_bytes > max_bytes):
            self._held = found
            return None
        self._taken.append(index)
        return row

    def resume(self, packer: Packer) -> Frame | None:
        """Continue from the log's note; return the batch that was being sent, as the same bytes."""
        done = self._progress
        if done.seq < 0 or self._spool is None:
            return None
        whole = self._spool.position == done.settled and len(self._spool) >= done.packed
        if not done.packed or not whole:
            # No batch was being sent, or a damaged log lost rows of it: a new number comes next.
            packer.go_on(done.seq + 1, done.attempt, done.last_step)
            return None
        found = [pair for _ in range(done.packed) if (pair := self._next()) is not None]
        self._taken, rows = [index for index, _ in found], [row for _, row in found]
        packer.go_on(done.seq, done.attempt, -1)
        return packer.pack(rows, skipped=done.skipped, dropped=done.dropped)

    def packed(self, frame: Frame) -> None:
        """Record that ``frame`` is being sent, before any of it is sent.

        Synced to disk: after a crash of the machine the same rows must keep their number.
        """
        batch = frame.batch
        self._note(
            replace(
                self._progress,
                settled=self._taken[0] if self._taken else self._progress.settled,
                packed=len(self._taken),
                seq=batch.seq,
                skipped=batch.skipped,
                dropped=batch.dropped,
                attempt=batch.attempt,
                last_step=batch.steps[-1],
            ),
            sync=True,
        )

    def settled(self) -> None:
        """Record that the batch being sent is acknowledged or given up, and delete its rows."""
        behind = self._taken[-1] + 1 if self._taken else self._progress.settled
        self._taken = []
        self._note(replace(self._progress, settled=behind, packed=0))
        if self._spool is not None and not self._closed:
            self._spool.forget(behind)

    def close(self, end: EndState | None, *, keep: bool) -> bool:
        """Write the remaining rows and close; return whether the spool has them (``keep``)."""
        self._stopping = True
        self._bell.put(None)
        with self._lock:
            written = self.write()
            self._memory.close()
            if end is not None:
                self._note(replace(self._progress, end=end))
            self._closed = True
            if self._spool is None:
                return False
            try:
                self._spool.close(remove=not keep)
                if not keep:
                    spool_directory.remove(self._spool.folder)
            except OSError as error:
                self._complain(error)
            return written

    def _next(self) -> tuple[int, LayerRow] | None:
        if self._spool is None or (found := self._spool.next()) is None:
            return None
        index, entry = found
        return index, unpacked(entry, self._metrics, self._num_layers)

    def _note(self, progress: Progress, *, sync: bool = False) -> None:
        with self._lock:
            if self._closed:
                return  # an answer that came too late: the batch will be sent again
            self._progress = progress
            if self._spool is not None:
                try:
                    self._spool.set_note(progress.note(), sync=sync)
                except OSError as error:
                    self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("snc: the spool takes no rows (%s); they wait in memory only", error)
