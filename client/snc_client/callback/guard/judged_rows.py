"""The rows of a step as the guard needs them, and with what it says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from snc_client.callback.guard.guard import Guard
from snc_client.callback.readback.device_row import DeviceRow
from snc_client.callback.readback.metrics import GUARD_METRIC
from snc_client.devices import to_device


def judged_rows(
    guard: Guard,
    rows: Sequence[DeviceRow],
    references: Sequence[tuple[Sequence[int], Tensor]],
    num_layers: int,
    held: Sequence[int],
) -> tuple[list[DeviceRow], dict[str, Any]]:
    """Let the guard judge the step; return the rows with its metric, and its scalars.

    ``references``: indices of layers and their reference sigmas, for each group of layers; ``held``
    are the layers that are rescaled or capped.
    """
    at = [to_device(row.layers, row.device, torch.int64) for row in rows]

    def of_all(places: Iterable[Tensor], values: Iterable[Tensor]) -> Tensor:
        every = torch.full((num_layers,), math.nan, device=guard.device)
        for here, found in zip(places, values, strict=True):
            every.index_copy_(0, here, found)
        return every

    groups = [to_device(indices, known.device, torch.int64) for indices, known in references]
    strain, judged = guard.settle(
        of_all(at, [row.sigma for row in rows]),
        of_all(at, [row.threshold for row in rows]),
        of_all(at, [row.scale for row in rows]),
        of_all(groups, [known for _, known in references]),
        held,
    )
    found = [{GUARD_METRIC: strain[here]} for here in at]
    return [row.with_metrics(more) for row, more in zip(rows, found, strict=True)], judged
