"""InFlight: rows whose copies to the host are under way, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from snc_client.callback.readback.device_row import DeviceRow
from snc_client.callback.readback.pending_row import PendingRow, start_copy
from snc_client.callback.readback.pinned_buffers import Readback
from snc_client.callback.readback.scalars import Scalars
from snc_client.layer_row import Mask

TAKEN_AT = 3  # rows under way at which several ranks take the oldest


class InFlight:
    """Rows with these ``metrics``, from their measurement until the host takes them."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.lost = 0
        """Rows that were never sent, because every buffer was in use."""
        self._metrics = metrics
        self._scalars = Scalars()
        self._readbacks: dict[torch.device, Readback] = {}
        self._rows: deque[PendingRow] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def start(self, device: torch.device) -> None:
        """Record the time at which ``device`` begins to work for the next row."""
        self._readback(device).start()

    def ship(
        self, step: int, stops: Mask, rows: Sequence[DeviceRow], scalars: Mapping[str, Any]
    ) -> PendingRow | None:
        """Start the copies of a step; None if no buffer is free. ``stops`` is bool [L]."""
        numbers, tensors = self._scalars.sort(scalars)
        by_device: dict[torch.device, list[DeviceRow]] = {device: [] for device in tensors}
        for row in rows:
            by_device.setdefault(row.device, []).append(row)
        if any(self._readback(device).full() for device in by_device):
            self.lost += 1
            return None
        copies = [
            start_copy(self._readback(device), here, self._metrics, tensors.get(device, {}))
            for device, here in by_device.items()
        ]
        certified = np.zeros(len(stops), np.bool_)
        certified[[i for row in rows for i in row.certified]] = True
        pending = PendingRow(step, stops, numbers, copies, certified, self._metrics)
        self._rows.append(pending)
        return pending

    def extend(self, step: int, rows: Sequence[DeviceRow]) -> None:
        """Add the values of more layers to the row of ``step``, if it has not arrived."""
        pending = self._rows[-1] if self._rows and self._rows[-1].step == step else None
        if pending is None:
            return
        for row in rows:
            readback = self._readback(row.device)
            if not readback.full():
                pending.copies.append(start_copy(readback, [row], self._metrics, {}))
                pending.certified[list(row.certified)] = True

    def report(self, step: int, scalars: Mapping[str, Any]) -> bool:
        """Add scalars to the row of ``step``; return False if it has arrived or never existed."""
        row = self._rows[-1] if self._rows and self._rows[-1].step == step else None
        if row is None:
            return False
        numbers, tensors = self._scalars.sort(scalars)
        row.scalars.update(numbers)
        for device, named in tensors.items():
            readback = self._readback(device)
            if not readback.full():
                readback.start()
                row.copies.append(start_copy(readback, [], self._metrics, named))
        return True

    def taken(self, *, at_once: bool) -> Iterator[PendingRow]:
        """Yield rows that have arrived: with ``at_once`` those that are ready, without a wait.

        Otherwise yield all rows but the newest two, and wait for each.
        """
        while self._rows and (self._rows[0].ready() if at_once else len(self._rows) >= TAKEN_AT):
            row = self._rows.popleft()
            row.wait()
            yield row

    def widen(self, more: int) -> None:
        """Add ``more`` layers to every row, not measured and not certified."""
        for row in self._rows:
            row.stops, row.certified = (np.pad(x, (0, more)) for x in (row.stops, row.certified))

    def drop(self) -> None:
        """Drop all rows and free their buffers."""
        for row in self._rows:
            row.take(len(row.stops))
        self._rows.clear()

    def _readback(self, device: torch.device) -> Readback:
        if device not in self._readbacks:
            self._readbacks[device] = Readback(device)
        return self._readbacks[device]
