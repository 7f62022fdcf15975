"""ShardedActions: writes the pieces of layers that are held, all processes by equal factors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from snc_client.callback.monitor.sharded.clip import FAR_ABOVE, clip_, follow
from snc_client.callback.monitor.sharded.sharded_sums import Found
from snc_client.constraint import normalize_, rescale_
from snc_client.devices import reading_is_free, to_device
from snc_client.layer_row import Mask
from snc_client.operators.sharded import ShardedMatrix
from snc_client.policy import HOLDING, LayerPolicy


class ShardedActions:
    """What is done to L layers, stored in ``dtypes``; ``gathered``: a proof has all of W."""

    def __init__(
        self, dtypes: Sequence[torch.dtype], gathered: Sequence[bool], device: torch.device
    ) -> None:
        self._dtypes, self._gathered, self._device = dtypes, gathered, device
        self.set([])

    def set(self, policies: Sequence[LayerPolicy]) -> None:
        """Put actions in force, one per layer."""
        self.held = tuple(i for i, p in enumerate(policies) if p.action in HOLDING)
        self.normalized = frozenset(i for i, p in enumerate(policies) if p.action == "normalize")
        self.capped = frozenset(i for i, p in enumerate(policies) if p.action == "cap")

    def act(
        self,
        written: Mask,
        proofs: Collection[int],
        found: Found,
        divisor: Tensor,
        upper: Tensor,
        threshold: Tensor,
    ) -> tuple[Tensor, Collection[int]]:
        """Hold the layers ``written``, bool [L]; return the factors, [L], and who was clipped.

        ``divisor``, ``upper`` (of the ``proofs``) and ``threshold`` are float32 [L].
        """
        held = [i for i in self.held if written[i]]
        clipped = self._clipped([i for i in held if i in proofs], found, upper, threshold)
        rest = [i for i in held if i not in clipped]
        scale = self._multiplied(rest, found.matrices, divisor, threshold)
        for i, factor in clipped.items():
            scale[i].copy_(factor)
        return scale, clipped

    def _clipped(
        self, proven: Sequence[int], found: Found, upper: Tensor, threshold: Tensor
    ) -> dict[int, Tensor]:
        """Clip the capped ones among the ``proven`` layers; return the factors of those above."""
        factors = {}
        for i in (i for i in proven if i in self.capped):
            matrix = found.matrices[i]
            if matrix is not None and 1 < upper[i] / threshold[i] <= FAR_ABOVE:
                whole, dtype = self._gathered[i], self._dtypes[i]
                factors[i] = clip_(matrix, found.sums[i], threshold[i], dtype, gathered=whole)
                follow(matrix, factors[i])
        return factors

    def _multiplied(
        self,
        held: Sequence[int],
        matrices: Sequence[ShardedMatrix | None],
        bound: Tensor,
        threshold: Tensor,
    ) -> Tensor:
        """Multiply the pieces of layers above their threshold; return the factors, [L]."""
        if reading_is_free(self._device):
            breached = (bound > threshold).tolist()
            held = [i for i in held if breached[i] or i in self.normalized]
        scale = torch.ones_like(bound)
        for multiply_, both_ways in ((rescale_, False), (normalize_, True)):
            weights: list[Tensor] = []
            places: list[int] = []
            for i in held:
                if (i in self.normalized) is not both_ways:
                    continue
                matrix = matrices[i]
                pieces = [] if matrix is None else [piece.local for piece in matrix.pieces]
                # The factor is computed without a piece, too: it is reported.
                weights += pieces or [torch.empty(0, dtype=self._dtypes[i], device=self._device)]
                places += [i] * max(1, len(pieces))
            if weights:
                at = to_device(places, self._device, torch.int64)
                scale = scale.index_copy(0, at, multiply_(weights, bound[at], threshold[at]))
        for i in held:
            follow(matrices[i], scale[i])
        return scale
