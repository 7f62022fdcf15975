"""Readback: copies values to the host through pinned buffers, without waiting for the device."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from snc_client.layer_row import Floats

# A training loop runs ahead of its device, seldom by more than one or two steps.
SLOTS = 8


class Flight(Protocol):
    """Values on their way to the host."""

    def ready(self) -> bool:
        """Return whether the values have arrived; never waits."""

    def wait(self) -> None:
        """Wait until the values have arrived."""

    def take(self) -> Floats:
        """Return the values, float32 [N]; to be called once, after they have arrived."""

    def device_seconds(self) -> float:
        """Return the seconds of the device from `Readback.start` to the copy, 0 if unknown."""


class Readback:
    """Copies float32 vectors of one device to the host.

    On CUDA the copy goes to pinned memory, and an event marks its end. Values of a CPU are on the
    host already. Any other device has no pinned memory to copy to: there the copy waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: deque[_Slot] = deque()
        if device.type == "cuda":
            self._free.extend(_Slot(device) for _ in range(SLOTS))

    def full(self) -> bool:
        """Return whether every buffer is in flight: then nothing can be sent."""
        return self._device.type == "cuda" and not self._free

    def start(self) -> None:
        """Record the beginning of the device's work for the next `send`."""
        if self._free:
            self._free[0].begin.record(torch.cuda.current_stream(self._device))

    def send(self, values: Tensor) -> Flight:
        """Start the copy of ``values`` (float32 [N], not written afterwards); not when `full`."""
        if self._device.type != "cuda":
            return _Landed(values.cpu().numpy())
        slot = self._free.popleft()
        slot.load(values)
        return _Flying(slot, values.numel(), self._free)


class _Slot:
    """One pinned buffer with the two events around the work whose result it receives."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.host = torch.empty(0, dtype=torch.float32, device="cpu")

    def load(self, values: Tensor) -> None:
        if self.host.numel() < values.numel():
            self.host = torch.empty(
                values.numel(), dtype=torch.float32, device="cpu", pin_memory=True
            )
        self.host[: values.numel()].copy_(values, non_blocking=True)
        self.end.record(torch.cuda.current_stream(self.device))


class _Flying:
    def __init__(self, slot: _Slot, size: int, free: deque[_Slot]) -> None:
        self._slot, self._size, self._free = slot, size, free

    def ready(self) -> bool:
        return bool(self._slot.end.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        if not self.ready():
            self._slot.end.synchronize()

    def take(self) -> Floats:
        values: Floats = self._slot.host[: self._size].numpy().copy()
        self._free.append(self._slot)
        return values

    def device_seconds(self) -> float:
        return float(self._slot.begin.elapsed_time(self._slot.end)) / 1e3


class _Landed:
    def __init__(self, values: Floats) -> None:
        self._values = values

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def take(self) -> Floats:
        return self._values

    def device_seconds(self) -> float:
        return 0.0
