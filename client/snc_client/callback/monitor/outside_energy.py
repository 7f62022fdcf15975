"""The part of each weight that its warm block does not see: a leap there shows at once."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from snc_client.precision import finite

# In units of sigma^2. A direction of 1.25 sigma that the block has never met adds 1.56. In ordinary
# training a step adds up to .07 (AdamW at 1e-3) or .2 (at 5e-3 without a warm-up), five steps .15.
SUDDEN = 0.5


class OutsideEnergy:
    """||W||_F^2 - ||W V||_F^2 of L layers from one measurement to the next, in units of sigma^2.

    V are the vectors of the warm block. An iteration multiplies them, and what is new in directions
    orthogonal to them is not in any of its products: sigma and residual stay as they were. The
    Frobenius norm has it. Layers without one (NaN) are not watched.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._share = torch.full((num_layers,), math.nan, device=device)
        self._sigma = self._share

    def share(self, sigma: Tensor, captured: Tensor, frobenius: Tensor) -> Tensor:
        """Return the energy outside, [L], for `rise` and `note`; NaN: not known."""
        return (frobenius / sigma).square() - (captured / sigma).square()

    def rise(self, sigma: Tensor, share: Tensor) -> Tensor:
        """Return by how much the energy outside has risen since `note`, [L]; NaN: not known.

        A weight that has grown as a whole has grown outside as well: that is no rise.
        """
        return share - self._share * (self._sigma / sigma).square().clamp(min=1.0)

    def note(self, sigma: Tensor, share: Tensor) -> None:
        """Remember this measurement, before the action; NaN leaves what is known of a layer."""
        new = finite(share)
        self._share = torch.where(new, share, self._share)
        self._sigma = torch.where(new, sigma, self._sigma)

    def acted(self, scale: Tensor, capped: Collection[int]) -> None:
        """Follow the action: ``scale`` [L]; what lies outside of ``capped`` layers has stayed."""
        self._sigma = self._sigma * scale
        for i in capped:
            self._share[i].div_(scale[i].square())
