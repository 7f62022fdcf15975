"""What a delivery asks of the rows that wait: `RowQueue` in memory, `SpooledRows` on disk."""

from __future__ import annotations

from typing import Protocol

from snc_client.layer_row import LayerRow
from snc_client.sender.backoff import EndState
from snc_client.sender.queue.batching import Frame, Packer


class Backlog(Protocol):
    """Rows handed over and not yet in a batch, in order; in memory or in a spool."""

    @property
    def num_bytes(self) -> int:
        """Return the bytes that wait."""

    @property
    def dropped_values(self) -> int:
        """Return the values lost so far."""

    @property
    def end(self) -> EndState | None:
        """Return how the job ended, where an earlier process said so."""

    @property
    def kept_values(self) -> int:
        """Return the values that a later process would find, beside the batch under way."""

    def __len__(self) -> int:
        """Return the number of rows that wait."""

    def take(self, *, after: int | None, max_bytes: int) -> LayerRow | None:
        """Return the oldest row if its step is above ``after`` and it fits; None otherwise."""

    def resume(self, packer: Packer) -> Frame | None:
        """Return the batch that an earlier process had under way."""

    def packed(self, frame: Frame) -> None:
        """Take note that ``frame`` is under way."""

    def settled(self) -> None:
        """Take note that the batch under way is acknowledged or given up."""

    def close(self, end: EndState | None, *, keep: bool) -> bool:
        """Let go; with ``keep`` return whether a later process finds what is left."""
