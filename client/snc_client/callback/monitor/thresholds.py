"""Thresholds: the current thresholds of the layers of one device, as a vector on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from snc_client.devices import reading_is_free, to_device

# A layer whose first sigma is below this was initialised to zero: its sigma shows no scale.
ZERO_INIT_SIGMA = 1e-3


class Thresholds:
    """factor * unit * stretch per layer; the unit may be the layer's first finite sigma.

    ``value`` is float32 [L]; inf where there is no threshold, and where the unit is not known yet.
    ``reference`` is float32 [L], the sigma registered for each layer, NaN before that. If it is
    below 1e-3, the unit is sqrt(fan_out / fan_in) instead: a threshold near zero would prevent the
    layer from learning.
    """

    def __init__(self, rms: Sequence[float], device: torch.device) -> None:
        self._rms = to_device(rms, device, torch.float32)
        self.reference = torch.full_like(self._rms, math.nan)
        self._complete = False  # the host knows that every layer has a reference
        self._stretch = torch.ones_like(self._rms[:1])
        self.set([math.inf] * len(rms), ["absolute"] * len(rms))

    @torch.no_grad()
    def set(self, factors: Sequence[float], units: Sequence[str]) -> None:
        """Set factors and units; the reference stays. The copies to the device don't wait.

        A factor is inf where there is no threshold; units are ``absolute``, ``init`` or ``rms``.
        """
        device, one = self._rms.device, torch.ones_like(self._rms)
        self._factor = to_device(factors, device, torch.float32)
        self._init = to_device([unit == "init" for unit in units], device, torch.bool)
        rms = to_device([unit == "rms" for unit in units], device, torch.bool)
        self._unit = torch.where(rms, self._rms, one)
        self._refresh()

    @torch.no_grad()
    def stretch(self, factor: float) -> None:
        """Multiply every threshold by ``factor`` (inf: no threshold) from now on.

        It replaces the factor of the previous call. One number is copied, without a wait.
        """
        self._stretch = to_device([factor], self._rms.device, torch.float32)
        self._refresh()

    def register(self, sigma: Tensor) -> None:
        """Store ``sigma`` (float32 [L]) as the reference of every layer that has none yet."""
        if self._complete:
            return
        known = torch.isfinite(self.reference)
        if reading_is_free(known.device) and known.all().tolist():
            self._complete = True
            return
        self.reference = torch.where(known, self.reference, sigma)
        self._refresh()

    def restore(self, reference: Tensor) -> None:
        """Replace the registered reference by another one, float32 [L]."""
        self.reference, self._complete = reference, False
        self._refresh()

    def _refresh(self) -> None:
        reference = torch.where(self.reference < ZERO_INIT_SIGMA, self._rms, self.reference)
        value = self._stretch * self._factor * torch.where(self._init, reference, self._unit)
        self.value = torch.nan_to_num(value, nan=math.inf, posinf=math.inf)
