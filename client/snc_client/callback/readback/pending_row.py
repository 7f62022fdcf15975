"""One measurement on its way: what the device still owes, and what the host knows already."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from snc_client.callback.readback.latest import METRICS, Latest, ThresholdBreached, mark_absent
from snc_client.callback.readback.pinned_buffers import Flight, Readback
from snc_service.wire import ABSENT, METRIC_NAME

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

log = logging.getLogger("snc")


@dataclass(frozen=True)
class Parcel:
    """What one device sends: [M, l] values of the layers at ``indices``, then named scalars."""

    flight: Flight
    indices: Sequence[int]
    names: Sequence[str]


@dataclass
class Row:
    """One step's measurement; complete when every parcel has arrived."""

    step: int
    stops: Mask  # [L]: a breach of these layers ends the training
    scalars: dict[str, float]
    parcels: list[Parcel]
    certified: Mask  # [L]: sigma_upper comes from a certificate of this step
    time: float = field(default_factory=time.time)
    metrics: Sequence[str] = METRICS
    num_steps: int = 1  # since the row before
    host_seconds: float = 0.0
    device_seconds: float = 0.0  # 0 where the device has no clock of its own

    def ready(self) -> bool:
        """Return whether everything has arrived; never waits."""
        return all(parcel.flight.ready() for parcel in self.parcels)

    def wait(self) -> None:
        """Return when everything has arrived."""
        for parcel in self.parcels:
            parcel.flight.wait()

    def take(self, num_layers: int) -> Floats:
        """Return the values, float32 [M, L] with ABSENT marked; ``scalars`` are complete then."""
        num_metrics = len(self.metrics)
        values = np.full((num_metrics, num_layers), ABSENT, np.float32)
        for parcel in self.parcels:
            self.device_seconds = max(self.device_seconds, parcel.flight.device_seconds())
            flat = parcel.flight.take()
            size = num_metrics * len(parcel.indices)
            values[:, parcel.indices] = flat[:size].reshape(num_metrics, -1)
            self.scalars.update(zip(parcel.names, flat[size:].tolist(), strict=True))
        if self.scalars.get("grad_norm", 0.0) < 0:
            del self.scalars["grad_norm"]  # the device's word for "not measured"
        mark_absent(values)
        return values

    def breach(self, latest: Latest) -> ThresholdBreached | None:
        """Return the worst breach among the layers whose action is ``stop``."""
        sigma, threshold = latest.row("sigma"), latest.row("threshold")
        over = np.where(self.stops & (sigma > threshold), sigma / threshold, 0.0)
        if not over.any():
            return None
        i = int(over.argmax())
        name = latest.names[i]
        return ThresholdBreached(name, self.step, float(sigma[i]), float(threshold[i]))


class Scalars:
    """Sorts a step's scalars: numbers stay on the host, tensors ride in their device's copy.

    What is no scalar is left out and named in the log once: a wrong argument must not end a
    training, nor keep a layer from being held.
    """

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def sort(
        self, scalars: Mapping[str, Any]
    ) -> tuple[dict[str, float], dict[torch.device, dict[str, Tensor]]]:
        """Return the numbers, and the tensors (float32 [1]) by device."""
        numbers: dict[str, float] = {}
        tensors: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in scalars.items():
            if not METRIC_NAME.fullmatch(name):
                self._refuse(name, "a name of [a-z0-9_] that starts with a letter")
            elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
                flat = value.detach().reshape(1).to(torch.float32)
                tensors.setdefault(value.device, {})[name] = flat
            elif isinstance(value, Real):
                numbers[name] = float(value)
            elif value is not None:
                self._refuse(name, "a number or a tensor with one element")
        return numbers, tensors

    def _refuse(self, name: str, expected: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            log.warning("scalar %r must be %s: it is not reported", name, expected)


def parcel(
    readback: Readback,
    values: Sequence[Tensor],
    indices: Sequence[int],
    scalars: Mapping[str, Tensor],
) -> Parcel:
    """Send one device's values ([M, l] each, [M, len(indices)] in all) and scalars in one copy."""
    parts = [torch.cat(list(values), dim=1).reshape(-1)] if values else []
    # A new tensor, also for a single part: nobody else writes it while it travels.
    return Parcel(readback.send(torch.cat([*parts, *scalars.values()])), indices, list(scalars))
