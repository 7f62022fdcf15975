"""The norms of a step before the action, and the offsets for layers born at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SIGMA, BORN_AT_ZERO, FLOOR = 1e-3, 0.02, 0.5


@dataclass
class Look:
    """Norms of a step before the action, by layer, 0-d."""

    known: bool | Tensor  # a copy of the last accepted step exists; with shards 0-d bool
    updates: dict[str, Tensor]
    frobenius: dict[str, Tensor]
    largest: Tensor  # norm of a parameter's change, over all parameters; NaN if any is NaN


class Floor(NamedTuple):
    """Offsets of sigma and Frobenius norm of layers born at zero, [L]; 0 for the others."""

    sigma: Tensor
    frobenius: Tensor

    @classmethod
    def of(cls, reference: Tensor, frobenius: Tensor) -> Floor:
        """Derive the offsets from the registered sigmas (NaN: none) and first Frobenius norms."""
        sigma = reference.clamp(min=SMALLEST_SIGMA)
        middle = median(sigma)
        born = (sigma < BORN_AT_ZERO * middle).float()
        stored = torch.where(frobenius > 0, frobenius, torch.nan)
        size = torch.nan_to_num(median(stored))
        return cls(FLOOR * torch.nan_to_num(middle) * born, FLOOR * size * born)


def median(values: Tensor) -> Tensor:
    """Return the median of the values that are not NaN, 0-d; torch's own waits for the device."""
    ordered = values.sort().values  # NaN last
    count = (~values.isnan()).sum()
    places = torch.stack([(count - 1) // 2, count // 2]).clamp(min=0, max=len(values) - 1)
    return ordered.gather(0, places).mean()
