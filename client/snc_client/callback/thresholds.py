"""The thresholds in force for the layers of one device, as a vector on that device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Below this the first sigma says nothing about the layer's scale: it was initialised to zero.
ZERO_INIT_SIGMA = 1e-3


class Thresholds:
    """factor * unit per layer, where a unit may be the layer's first finite sigma.

    ``value`` is float32 [L]; inf where there is no threshold, and where the unit is not known yet.
    ``reference`` is float32 [L], the sigma registered for each layer, NaN before that. A layer
    registered below 1e-3 takes sqrt(fan_out / fan_in) as its unit instead: three times nothing
    would forbid it to learn.
    """

    def __init__(self, rms: Sequence[float], device: torch.device) -> None:
        self._rms = torch.tensor(rms, dtype=torch.float32).to(device)
        self.reference = torch.full_like(self._rms, math.nan)
        self.set([math.inf] * len(rms), ["absolute"] * len(rms))

    @torch.no_grad()
    def set(self, factors: Sequence[float], units: Sequence[str]) -> None:
        """Put other thresholds in force; the reference stays. The copies to the device don't wait.

        A factor is inf where there is no threshold; units are ``absolute``, ``init`` or ``rms``.
        """
        device, one = self._rms.device, torch.ones_like(self._rms)
        self._factor = sent(torch.tensor(factors, dtype=torch.float32), device)
        self._init = sent(torch.tensor([unit == "init" for unit in units]), device)
        rms = sent(torch.tensor([unit == "rms" for unit in units]), device)
        self._unit = torch.where(rms, self._rms, one)
        self._refresh()

    @torch.no_grad()
    def register(self, sigma: Tensor) -> None:
        """Remember ``sigma`` (float32 [L]) as the reference of every layer that has none yet."""
        known = torch.isfinite(self.reference)
        self.reference = torch.where(known, self.reference, sigma)
        self._refresh()

    def restore(self, reference: Tensor) -> None:
        """Put another reference (float32 [L]) in the place of what was registered."""
        self.reference = reference.to(self._rms)
        self._refresh()

    def _refresh(self) -> None:
        reference = torch.where(self.reference < ZERO_INIT_SIGMA, self._rms, self.reference)
        value = self._factor * torch.where(self._init, reference, self._unit)
        self.value = torch.nan_to_num(value, nan=math.inf, posinf=math.inf)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the CPU ``tensor`` on ``device``, through pinned memory where that avoids a wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
