"""Bounds that outlive their certificate: what a weight has moved since is added to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snc_client.certificate import arithmetic_of, carry
from snc_client.operators import BlockDiagonal, Matrix, Operator

# Covers the float32 subtraction, the sum in float64 and the last rounding, many times over. Where
# there is only float32 it covers what a long sum has been seen to lose: evidence, as its
# certificates are.
SLACK = {"float64": 1e-6, "float32": 1e-3}


class CarriedBounds:
    """sigma_upper of L matrices at any step, from their last certificates: Weyl's inequality.

    ||W_t|| <= sigma_upper_s + ||W_t - W_s||_F holds whatever happened in between: optimizer steps,
    an action, a checkpoint that was loaded. It costs a copy of each matrix that is certified, and
    one read of both for each bound: half a power iteration, 1/40 of a certificate.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._certified = torch.full((num_layers,), math.inf, device=device)
        self._copies: dict[int, Tensor] = {}
        self._arithmetic = arithmetic_of(device)

    def certified(self, i: int, operator: Operator, upper: Tensor) -> None:
        """Start from the weight of layer ``i`` as it is now, certified to have the norm ``upper``.

        A map that is neither a matrix nor made of blocks has no certificate, so it has no bound.
        """
        if not isinstance(operator, Matrix | BlockDiagonal):
            return
        copy, weight = self._copies.get(i), operator.weight
        if copy is None or copy.dtype != weight.dtype:
            self._copies[i] = weight.clone()
        else:
            copy.copy_(weight)
        self._certified[i].copy_(upper)

    def bounds(self, operators: Mapping[int, Operator]) -> Tensor:
        """Return the bounds of these layers as float32 [L]: inf where there is none yet.

        NaN for the other layers, and where a weight is not finite now or was not.
        """
        drift = torch.full_like(self._certified, math.nan)
        for i, operator in operators.items():
            if i not in self._copies:
                drift[i].fill_(math.inf)
            elif isinstance(operator, Matrix | BlockDiagonal):
                drift[i].copy_(self._drift(operator.weight, self._copies[i]))
        return carry(self._certified, drift=drift)

    def _drift(self, weight: Tensor, copy: Tensor) -> Tensor:
        """Return a bound of the Frobenius norm of the difference, 0-d."""
        wide = torch.promote_types(weight.dtype, torch.float32)  # exact for low precision
        dtype = torch.float64 if self._arithmetic == "float64" else torch.float32
        norm: Tensor = torch.linalg.vector_norm(weight.to(wide) - copy, dtype=dtype)
        return norm * (1 + SLACK[self._arithmetic])
