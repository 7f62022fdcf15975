"""RowQueue: rows between the training thread and the sender thread, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from snc_client.layer_row import LayerRow
from snc_client.sender.backoff import EndState
from snc_client.sender.queue.batching import Frame, Packer

# Of one process. In steps of 1,000 layers x 5 metrics: 3,000 in memory, 50,000 in a spool.
QUEUE_BYTES = 64 * 2**20
SPOOL_BYTES = 2**30


class RowQueue:
    """One row per measured step; past the bound in bytes the oldest row is dropped and counted.

    The lock is held for a few instructions at a time and never during a wait, so the cost of `put`
    does not depend on the service.
    """

    def __init__(self, max_bytes: int) -> None:
        self._rows: deque[LayerRow] = deque()
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self._open = True
        self.num_bytes = 0
        self.dropped_values = 0  # since the start
        self.kept_values = 0
        self.end: EndState | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: LayerRow) -> int:
        """Append ``row``; return how many rows wait now, 0 once closed."""
        with self._lock:
            if not self._open:
                self.dropped_values += row.num_values
                return 0
            self._rows.append(row)
            self.num_bytes += row.num_bytes
            # The newest stays even if it alone exceeds the bound: else nothing would be sent.
            while self.num_bytes > self._max_bytes and len(self._rows) > 1:
                self.dropped_values += self._pop().num_values
            return len(self._rows)

    def refuse(self, num_values: int) -> None:
        """Count values of a row that could never be sent."""
        with self._lock:
            self.dropped_values += num_values

    def take(self, *, after: int | None, max_bytes: int) -> LayerRow | None:
        """Pop the oldest row if its step is above ``after`` and it fits; None otherwise."""
        with self._lock:
            if not self._rows:
                return None
            row = self._rows[0]
            if after is not None and (row.step <= after or row.num_bytes > max_bytes):
                return None
            return self._pop()

    def take_all(self, most: int) -> list[LayerRow]:
        """Pop the oldest rows, at most ``most``."""
        with self._lock:
            return [self._pop() for _ in range(min(most, len(self._rows)))]

    def put_back(self, rows: Sequence[LayerRow]) -> None:
        """Undo `take_all`."""
        with self._lock:
            self._rows.extendleft(reversed(rows))
            self.num_bytes += sum(row.num_bytes for row in rows)

    def resume(self, packer: Packer) -> Frame | None:
        """Return None: memory holds no batch of an earlier process."""
        return None

    def packed(self, frame: Frame) -> None:
        """Do nothing: rows in memory need no record of the batch being sent."""

    def settled(self) -> None:
        """Do nothing, for the same reason."""

    def close(self, end: EndState | None = None, *, keep: bool = False) -> bool:
        """Refuse rows from now on, and count those that wait as dropped: nothing is kept."""
        with self._lock:
            self._open = False
            self.dropped_values += sum(row.num_values for row in self._rows)
            self._rows.clear()
            self.num_bytes = 0
        return False

    def _pop(self) -> LayerRow:
        row = self._rows.popleft()
        self.num_bytes -= row.num_bytes
        return row
