"""RowSource: the interface that `RowQueue` (memory) and `SpooledRows` (disk) implement."""

from __future__ import annotations

from typing import Protocol

from snc_client.layer_row import LayerRow
from snc_client.sender.backoff import EndState
from snc_client.sender.queue.batching import Frame, Packer


class RowSource(Protocol):
    """Rows in order that are not yet in a batch, in memory or in a spool."""

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the waiting rows."""

    @property
    def dropped_values(self) -> int:
        """Return how many values were lost so far."""

    @property
    def end(self) -> EndState | None:
        """Return how the job ended, if an earlier process recorded it."""

    @property
    def kept_values(self) -> int:
        """Return how many values a later process would find, without the batch being sent."""

    def __len__(self) -> int:
        """Return the number of waiting rows."""

    def take(self, *, after: int | None, max_bytes: int) -> LayerRow | None:
        """Return the oldest row if its step is above ``after`` and it fits; None otherwise."""

    def resume(self, packer: Packer) -> Frame | None:
        """Return the batch that an earlier process was sending."""

    def packed(self, frame: Frame) -> None:
        """Record that ``frame`` is being sent."""

    def settled(self) -> None:
        """Record that the batch being sent is acknowledged or given up."""

    def close(self, end: EndState | None, *, keep: bool) -> bool:
        """Close; with ``keep`` return whether a later process finds the remaining rows."""
