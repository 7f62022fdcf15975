"""ShardedBounds: certified bounds of sharded matrices, and how far each has moved since."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from snc_client.callback.monitor.carried_bounds import ROUNDOFF, frobenius_upper
from snc_client.certificate import carry
from snc_client.operators.sharded import ShardedMatrix


class ShardedBounds:
    """`CarriedBounds` where each process keeps a copy of its own pieces, and of no others."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._certified = torch.full((num_layers,), math.inf, device=device)
        self._copies: dict[int, list[Tensor]] = {}

    def known(self, i: int) -> bool:
        """Return whether there is a start to carry from for layer ``i``."""
        return i in self._copies

    def certified(self, i: int, matrix: ShardedMatrix | None, upper: Tensor) -> None:
        """Carry from the present pieces of layer ``i``, whose certified bound is ``upper``.

        Where that is not finite the start is a zero matrix, as in `CarriedBounds`.
        """
        proven = upper.isfinite()
        pieces = () if matrix is None else matrix.pieces
        self._copies[i] = [torch.where(proven, piece.local, 0) for piece in pieces]
        self._certified[i].copy_(torch.where(proven, upper, 0))

    def moved(self, i: int, matrix: ShardedMatrix) -> Tensor:
        """Return this process's share of the square of the distance, 0-d float64; 0 if unknown."""
        total = torch.zeros((), dtype=torch.float64, device=self._certified.device)
        if not matrix.counts:
            return total
        for piece, before in zip(matrix.pieces, self._copies.get(i, ()), strict=False):
            wide = torch.promote_types(piece.local.dtype, torch.float32)
            if piece.local.numel():
                total += frobenius_upper(piece.local.to(wide) - before).double().square()
        return total

    def bounds(self, which: Sequence[int], squares: Tensor, terms: Tensor) -> Tensor:
        """Return the bounds of ``which`` layers as float32 [L], NaN for the others.

        ``squares`` are the sums of `moved`, each of so many ``terms``, float32 [L] both.
        """
        drift = squares.sqrt() * (1 + (terms + 8) * 2 * ROUNDOFF)
        carried = carry(self._certified, drift=drift)
        chosen = torch.zeros_like(carried, dtype=torch.bool)
        for i in which:
            chosen[i] = True
        return torch.where(chosen, carried, math.nan)
