"""The rows of all devices on their way to the host, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snc_client.callback.readback.pending_row import Mask, Row, Scalars, parcel
from snc_client.callback.readback.pinned_buffers import Readback

TAKEN_AT = 3  # rows in flight, among several ranks


class Measured(NamedTuple):
    """What a device has of one step: [M, l] for the layers at ``indices``."""

    device: torch.device
    indices: Sequence[int]
    rows: Tensor
    certified: Sequence[int] = ()


class InFlight:
    """Rows with these ``metrics``, from the step that made them until the host takes them."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.lost = 0  # rows that found every buffer still in flight
        self._metrics = metrics
        self._scalars = Scalars()
        self._readbacks: dict[torch.device, Readback] = {}
        self._rows: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def start(self, device: torch.device) -> None:
        """Mark the begin of a device's work for the next row."""
        self._readback(device).start()

    def ship(
        self, step: int, stops: Mask, values: Sequence[Measured], scalars: Mapping[str, Any]
    ) -> Row | None:
        """Send a row on its way; None if no buffer was free for it. ``stops``: bool [L]."""
        numbers, tensors = self._scalars.sort(scalars)
        by_device: dict[torch.device, list[Measured]] = {device: [] for device in tensors}
        for measured in values:
            by_device.setdefault(measured.device, []).append(measured)
        if any(self._readback(device).full() for device in by_device):
            self.lost += 1
            return None
        parcels = [
            parcel(
                self._readback(device),
                [each.rows for each in here],
                [i for each in here for i in each.indices],
                tensors.get(device, {}),
            )
            for device, here in by_device.items()
        ]
        certified = np.zeros(len(stops), np.bool_)
        certified[[i for measured in values for i in measured.certified]] = True
        row = Row(step, stops, numbers, parcels, certified, metrics=self._metrics)
        self._rows.append(row)
        return row

    def report(self, step: int, scalars: Mapping[str, Any]) -> bool:
        """Add scalars to the row of ``step`` unless it has arrived; return whether it took them."""
        row = self._rows[-1] if self._rows and self._rows[-1].step == step else None
        if row is None:
            return False
        numbers, tensors = self._scalars.sort(scalars)
        row.scalars.update(numbers)
        for device, named in tensors.items():
            readback = self._readback(device)
            if not readback.full():
                readback.start()
                row.parcels.append(parcel(readback, [], [], named))
        return True

    def taken(self, *, at_once: bool) -> Iterator[Row]:
        """Yield the rows that have arrived; not ``at_once``: all but the newest two, waited for."""
        while self._rows and (self._rows[0].ready() if at_once else len(self._rows) >= TAKEN_AT):
            row = self._rows.popleft()
            row.wait()
            yield row

    def widen(self, more: int) -> None:
        """Let the rows speak of so many more layers, which they have not measured."""
        for row in self._rows:
            row.stops, row.certified = (np.pad(x, (0, more)) for x in (row.stops, row.certified))

    def drop(self) -> None:
        """Forget all rows."""
        for row in self._rows:
            row.take(len(row.stops))  # gives the buffers back
        self._rows.clear()

    def _readback(self, device: torch.device) -> Readback:
        if device not in self._readbacks:
            self._readbacks[device] = Readback(device)
        return self._readbacks[device]
