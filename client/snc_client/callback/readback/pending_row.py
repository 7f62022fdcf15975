"""PendingRow: a measurement whose copy to the host has started and may not have finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from snc_client.callback.readback.device_row import DeviceRow, flattened
from snc_client.callback.readback.latest import ThresholdBreached
from snc_client.callback.readback.metrics import mark_absent
from snc_client.callback.readback.pinned_buffers import Flight, Readback
from snc_client.layer_row import LayerRow, Mask
from snc_service.wire import ABSENT


@dataclass(frozen=True)
class Copy:
    """The copy from one device: [M, l] values of ``layers``, then the named scalars."""

    flight: Flight
    layers: Sequence[int]
    scalars: Sequence[str]


@dataclass
class PendingRow:
    """The row of one step, complete when the copy from every device has finished."""

    step: int
    stops: Mask
    """bool [L]: layers whose breach ends the training."""
    scalars: dict[str, float]
    copies: list[Copy]
    certified: Mask
    metrics: Sequence[str]
    time: float = field(default_factory=time.time)
    num_steps: int = 1
    """Steps since the row before."""
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    """0 where the device has no clock of its own."""

    def ready(self) -> bool:
        """Return whether every copy has finished; never waits."""
        return all(copy.flight.ready() for copy in self.copies)

    def wait(self) -> None:
        """Return when every copy has finished."""
        for copy in self.copies:
            copy.flight.wait()

    def take(self, num_layers: int) -> LayerRow:
        """Return the row; to be called once, when it is `ready`."""
        num_metrics = len(self.metrics)
        values = np.full((num_metrics, num_layers), ABSENT, np.float32)
        for copy in self.copies:
            self.device_seconds = max(self.device_seconds, copy.flight.device_seconds())
            flat = copy.flight.take()
            size = num_metrics * len(copy.layers)
            values[:, copy.layers] = flat[:size].reshape(num_metrics, -1)
            self.scalars.update(zip(copy.scalars, flat[size:].tolist(), strict=True))
        if self.scalars.get("grad_norm", 0.0) < 0:
            del self.scalars["grad_norm"]  # NOT_MEASURED
        mark_absent(self.metrics, values)
        return LayerRow(
            self.step, self.metrics, values, self.scalars, self.time, certified=self.certified
        )

    def breach(self, row: LayerRow, names: Sequence[str]) -> ThresholdBreached | None:
        """Return the worst breach in ``row`` among the layers whose action is ``stop``."""
        sigma, threshold = row.metric("sigma"), row.metric("threshold")
        over = np.where(self.stops & (sigma > threshold), sigma / threshold, 0.0)
        if not over.any():
            return None
        i = int(over.argmax())
        return ThresholdBreached(names[i], self.step, float(sigma[i]), float(threshold[i]))


def start_copy(
    readback: Readback,
    rows: Sequence[DeviceRow],
    metrics: Sequence[str],
    scalars: Mapping[str, Tensor],
) -> Copy:
    """Start the one copy of a device's rows and scalars (float32 [1] each) to the host."""
    layers = [i for row in rows for i in row.layers]
    # A new vector, so nothing writes it while it is copied.
    flat = flattened(rows, metrics, list(scalars.values()))
    return Copy(readback.send(flat), layers, list(scalars))
