"""Bounds that outlive their certificate: what a weight has moved since is added to them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from snc_client.callback.monitor.norms import by_rows
from snc_client.certificate import carry
from snc_client.operators import BlockDiagonal, Matrix, Operator

ROUNDOFF = 2.0**-24  # of float32
SQUARE_UNDERFLOW = 2.0**-63  # below this a square may vanish in float32
# Relative error of `update_norms.moves`: a dozen roundings of its terms.
SLACK = 1e-4
OVERSHOOT = 2e-6  # of sigma, by the rounding of its products


class CarriedBounds:
    """sigma_upper of L matrices at any step, from their last certificates: Weyl's inequality.

    ||W_t|| <= sigma_upper_s + ||W_t - W_s||_F holds whatever happened in between: optimizer steps,
    an action, a checkpoint that was loaded. It costs a copy of each matrix that is certified, and
    one read of both for each bound: half a power iteration, 1/40 of a certificate.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._certified = torch.full((num_layers,), math.inf, device=device)
        self._copies: dict[int, Tensor] = {}

    def certified(self, i: int, operator: Operator, upper: Tensor) -> None:
        """Start from the weight of layer ``i`` as it is now, certified to have the norm ``upper``.

        A map that is neither a matrix nor made of blocks has no certificate, so it has no bound.
        Where ``upper`` is not finite, neither is the weight: then the start is a zero matrix, of
        norm zero, so that the next bound is the Frobenius norm.
        """
        if not isinstance(operator, Matrix | BlockDiagonal):
            return
        proven = upper.isfinite()
        self._copies[i] = torch.where(proven, operator.weight, 0)
        self._certified[i].copy_(torch.where(proven, upper, 0))

    def known(self, i: int) -> bool:
        """Return whether there is a start to carry from for layer ``i``."""
        return i in self._copies

    def bounds(self, operators: Mapping[int, Operator]) -> Tensor:
        """Return the bounds of these layers as float32 [L]: inf where there is none yet.

        NaN for the other layers, and where a weight is not finite.
        """
        drift = torch.full_like(self._certified, math.nan)
        for i, operator in operators.items():
            if i not in self._copies:
                drift[i].fill_(math.inf)
            elif isinstance(operator, Matrix | BlockDiagonal):
                weight = operator.weight
                wide = torch.promote_types(weight.dtype, torch.float32)  # exact for low precision
                drift[i].copy_(frobenius_upper(weight.to(wide) - self._copies[i]))
        return carry(self._certified, drift=drift)


class SteppedBounds:
    """sigma_upper of L matrices, carried from step to step by what each step can have added.

    No copy: ||W_t|| <= sigma_upper_(t-1) + ||step||_F, where the caller knows that nothing but the
    optimizer's step has written the weight since `acted`. The norms add up, so this grows faster
    than the difference of two weights does, until the next certificate. For float32 and float64.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
        self._upper = torch.full((len(shapes),), math.nan, device=device)
        # ||W||_F <= sqrt(min(m, n)) ||W||, and a step rounds each entry two or three times.
        self._root = torch.tensor([math.sqrt(min(s)) for s in shapes], device=device)
        self._slack = torch.tensor([1 + SLACK + sum(s) * ROUNDOFF for s in shapes], device=device)

    def filled(self, upper: Tensor, sigma: Tensor, drift: Mapping[int, Tensor]) -> Tensor:
        """Return ``upper`` (float32 [L]) with carried bounds in the place of NaN where it can.

        ``drift`` has the Frobenius norm of the step, summed by rows, for the layers whose last step
        is known. Where ``sigma`` contradicts the bound, something unseen has written the weight.
        """
        moved = torch.full_like(upper, math.nan)
        for i, norm in drift.items():
            moved[i].copy_(norm)
        after = self._upper + moved.abs() * self._slack
        carried = carry(after * (1 + 8 * ROUNDOFF * self._root))
        sound = carried.isfinite() & (sigma <= carried * (1 + OVERSHOOT))
        return torch.where(upper.isnan() & sound, carried, upper)

    def acted(self, upper: Tensor, scale: Tensor, void: Collection[int] = ()) -> None:
        """Go on from these bounds after the action: ``scale``; ``void`` layers were capped."""
        scaled = carry(upper, scale=scale, frobenius=self._root * upper, rounding=ROUNDOFF)
        for i in void:
            scaled[i].fill_(math.nan)
        self._upper = torch.where(scale == 1, upper, scaled)


def frobenius_upper(x: Tensor) -> Tensor:
    """Return a bound of the Frobenius norm, 0-d: close, and never below it.

    Summed row by row: a long float32 sum loses up to 2 % (50,000 x 768), a double sum takes 15
    times as long, and the rounding of two short ones is known: (m + n) * 2^-24 at most, in any
    order. What may have vanished as a square is added.
    """
    terms = sum(x.flatten(2).shape if x.ndim > 2 else x.shape)
    lost = math.sqrt(x.numel()) * SQUARE_UNDERFLOW
    return by_rows(x) * (1 + (terms + 8) * ROUNDOFF) + lost
