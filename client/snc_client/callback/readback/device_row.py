"""DeviceRow: the metrics of one device group at one step, still on its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class DeviceRow:
    """Metrics of l layers, float32 [l] each on one device; the host has not read any of them.

    `snc_client.callback.readback.metrics` defines the value of a metric that was not measured.
    """

    device: torch.device
    layers: Sequence[int]
    """Indices among all layers of the model."""
    certified: Sequence[int]
    """The same indices, of the layers whose sigma_upper is a certificate of this step."""
    sigma: Tensor
    threshold: Tensor
    scale: Tensor
    residual: Tensor
    sigma_upper: Tensor
    more: Mapping[str, Tensor] = field(default_factory=dict)
    """Norms, and the guard's metric."""

    def metric(self, name: str) -> Tensor:
        """Return one metric by name, float32 [l]."""
        if name in self.more:
            return self.more[name]
        values: Tensor = getattr(self, name)
        return values

    def with_metrics(self, more: Mapping[str, Tensor]) -> DeviceRow:
        """Return this row with further metrics, float32 [l] each."""
        return replace(self, more={**self.more, **more})


def flattened(
    rows: Sequence[DeviceRow], metrics: Sequence[str], scalars: Sequence[Tensor]
) -> Tensor:
    """Return the rows of one device, [M, sum of l], then its scalars, as one new vector.

    The only place that orders metrics by position; `PendingRow.take` reads that order.
    """
    return torch.cat([row.metric(name) for name in metrics for row in rows] + list(scalars))
