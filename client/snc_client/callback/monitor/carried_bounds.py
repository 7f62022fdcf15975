"""Carried bounds: a certificate plus the distance that the weight has moved since."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from snc_client.bounds import per_frobenius
from snc_client.certificate import carry
from snc_client.estimator.frobenius import by_rows
from snc_client.operators import Adjoint, BlockDiagonal, Convolution, Matrix, Operator

ROUNDOFF = 2.0**-24  # of float32
SQUARE_UNDERFLOW = 2.0**-63  # below this a square may vanish in float32
# Relative error of `update_norms.moves`: a dozen roundings of its terms.
SLACK = 1e-4
OVERSHOOT = 2e-6  # of sigma, by the rounding of its products


class CarriedBounds:
    """sigma_upper of L matrices at any step, from their last certificates: Weyl's inequality.

    ||W_t|| <= sigma_upper_s + ||W_t - W_s||_F holds after any change in between: optimizer steps,
    an action, a loaded checkpoint. It costs a copy of each certified matrix, and one read of both
    for each bound: half a power iteration, 1/40 of a certificate.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._certified = torch.full((num_layers,), math.inf, device=device)
        self._copies: dict[int, Tensor] = {}

    def certified(self, i: int, operator: Operator, upper: Tensor) -> None:
        """Carry from the present weight of layer ``i``, whose certified bound is ``upper``.

        Only of a matrix, of blocks and of a convolution, whose norm follows from its kernel's.
        Where ``upper`` is not finite, neither is the weight: then the start is a zero matrix, of
        norm zero, so that the next bound is the Frobenius norm.
        """
        stored = _stored(operator)
        if stored is None:
            return
        proven = upper.isfinite()
        self._copies[i] = torch.where(proven, stored[0], 0)
        self._certified[i].copy_(torch.where(proven, upper, 0))

    def drop(self, i: int) -> None:
        """Forget the last certificate of layer ``i``."""
        self._copies.pop(i, None)
        self._certified[i].fill_(math.inf)

    def known(self, i: int) -> bool:
        """Return whether there is a start to carry from for layer ``i``."""
        return i in self._copies

    def at_rest(self, i: int, operator: Operator, threshold: Tensor) -> bool:
        """Return whether layer ``i`` is what was certified, with a bound up to ``threshold`` (0-d).

        For a CPU: the host reads the result.
        """
        copy = self._copies.get(i)
        if copy is None or not isinstance(operator, Matrix | BlockDiagonal):
            return False
        proven = self._certified[i] <= threshold
        return all((proven & (copy == operator.weight).all()).reshape(1).tolist())

    def upper(self, i: int) -> Tensor:
        """Return the last certified bound of layer ``i``, 0-d."""
        return self._certified[i]

    def above(self, threshold: Tensor) -> list[bool]:
        """Return whether the start of each layer is above ``threshold`` [L]; inf for none.

        No bound that is carried from there is below. For a CPU: the host reads the result.
        """
        found: list[bool] = (self._certified > threshold).tolist()
        return found

    def bounds(self, operators: Mapping[int, Operator]) -> Tensor:
        """Return the bounds of these layers as float32 [L]: inf where there is none yet.

        NaN for the other layers, and where a weight is not finite.
        """
        drift = torch.full_like(self._certified, math.nan)
        for i, operator in operators.items():
            if i not in self._copies:
                drift[i].fill_(math.inf)
            elif (stored := _stored(operator)) is not None:
                weight, factor = stored
                wide = torch.promote_types(weight.dtype, torch.float32)  # exact for low precision
                drift[i].copy_(frobenius_upper(weight.to(wide) - self._copies[i]) * factor)
        return carry(self._certified, drift=drift)


def _stored(operator: Operator) -> tuple[Tensor, float] | None:
    """Return what the map is made of, and its norm over the Frobenius norm of that, at most."""
    if isinstance(operator, Matrix | BlockDiagonal):
        return operator.weight, 1.0
    if isinstance(operator, Convolution | Adjoint):
        return operator.tensors[0], per_frobenius(operator)
    return None


class SteppedBounds:
    """sigma_upper of L matrices, carried from step to step by adding the norm of each step.

    Needs no copy: ||W_t|| <= sigma_upper_(t-1) + ||step||_F, if nothing but the optimizer's step
    has written the weight since `acted`; the caller checks that. The norms add up, so the bound
    grows faster than the difference of two weights, until the next certificate. For float32 and
    float64.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
        self._upper = torch.full((len(shapes),), math.nan, device=device)
        # ||W||_F <= sqrt(min(m, n)) ||W||, and a step rounds each entry two or three times.
        self._root = torch.tensor([math.sqrt(min(s)) for s in shapes], device=device)
        self._slack = torch.tensor([1 + SLACK + sum(s) * ROUNDOFF for s in shapes], device=device)

    def filled(self, upper: Tensor, sigma: Tensor, drift: Mapping[int, Tensor]) -> Tensor:
        """Return ``upper`` (float32 [L]) with NaN replaced by carried bounds where they are sound.

        ``drift`` has the Frobenius norm of the last step, summed by rows, of layers where that is
        known. If ``sigma`` exceeds a bound, an undetected write has changed the weight.
        """
        moved = torch.full_like(upper, math.nan)
        for i, norm in drift.items():
            moved[i].copy_(norm)
        after = self._upper + moved.abs() * self._slack
        carried = carry(after * (1 + 8 * ROUNDOFF * self._root))
        sound = carried.isfinite() & (sigma <= carried * (1 + OVERSHOOT))
        return torch.where(upper.isnan() & sound, carried, upper)

    def acted(self, upper: Tensor, scale: Tensor, void: Collection[int] = ()) -> None:
        """Store the bounds after the action: times ``scale``; NaN for ``void`` (capped) layers."""
        scaled = carry(upper, scale=scale, frobenius=self._root * upper, rounding=ROUNDOFF)
        for i in void:
            scaled[i].fill_(math.nan)
        self._upper = torch.where(scale == 1, upper, scaled)


def frobenius_upper(x: Tensor) -> Tensor:
    """Return a close upper bound of the Frobenius norm, 0-d.

    It sums row by row: a long float32 sum loses up to 2 % (50,000 x 768), and a float64 sum takes
    15 times as long. The rounding of the two short sums is (m + n) * 2^-24 at most, in any order.
    A bound of the squares that underflow is added.
    """
    terms = sum(x.flatten(2).shape if x.ndim > 2 else x.shape)
    lost = math.sqrt(x.numel()) * SQUARE_UNDERFLOW
    return by_rows(x) * (1 + (terms + 8) * ROUNDOFF) + lost
