"""ShardedGuard: undoes a step on all ranks of a sharded model, by one verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snc_client.callback.chunks import chunks
from snc_client.callback.guard.guard import Guard, parameter_of
from snc_client.callback.guard.inspection import Look
from snc_client.callback.guard.settings import GuardSettings
from snc_client.devices import reading_is_free
from snc_client.estimator.frobenius import norms
from snc_client.layers import Layer
from snc_client.operators.sharded import laid_like, local_part, members, reaches_all_ranks

log = logging.getLogger("snc")


class ShardedGuard(Guard):
    """`Guard` where each rank keeps and restores its own parts.

    What it judges are sums over the ranks, so the verdict is the same on all of them. Each rank
    adds the squares of its part of a step (`shares`), and judges the sums (`judge`), whatever lies
    on it. A step at which a rank has given no share, or does not know the step before, is accepted
    without a check by all of them, and is the start of new copies.

    Raises ValueError unless all layers are DTensors on meshes of all ranks of the job, shared by
    the same of them, on one device here: otherwise some numbers would not reach all ranks. Stages
    of a pipeline would each judge by themselves.
    """

    def _check(self) -> None:
        places = {members(x.shard().group) for x in self._layers if x.sharded}
        stored = ((x, x.parameter() if x.sharded else None) for x in self._layers)
        whole = [x.name for x, p in stored if p is None or not reaches_all_ranks(p)]
        if whole or len(places) > 1:
            got = f"{whole[0]!r} is none" if whole else f"they lie on {len(places)} sets of ranks"
            raise ValueError(
                "guard must be False for a sharded model, unless all of its layers are DTensors "
                f"of the same ranks, and of all ranks of the job, got True, and {got}"
            )
        if len({p.device for p in self._slots.parameters()}) != 1:
            raise ValueError("guard must be False for a model on several devices, got True")

    @torch.no_grad()
    def shares(self) -> list[Tensor | None]:
        """Return this rank's share of the square of each layer's step, 0-d float64.

        NaN of all layers where a parameter that is none of them is not finite here; None where the
        step before is not known. To be called before the action.
        """
        parameters = self._parameters()
        changed = self._changed(parameters)
        if changed or not self._kept or not self._fits(self._kept, self._values()):
            return [None] * len(self._layers)
        nothing = torch.zeros((), dtype=torch.float64, device=self.device)
        found, others = [nothing] * len(self._layers), nothing
        of = self._by_parameter()
        for chunk in chunks(zip(parameters, self._kept, strict=False), _entries):
            here = [local_part(p) for p, _ in chunk]
            moved = torch._foreach_sub(here, [kept for _, kept in chunk])
            for (parameter, _), change in zip(chunk, moved, strict=True):
                for i in of.get(id(parameter), ()):
                    matrix = self._layers[i].shard(laid_like(parameter, change))
                    if matrix.counts and matrix.pieces:
                        found[i] = found[i] + _square([x.local for x in matrix.pieces])
                if id(parameter) not in of:
                    others = others + 0 * _square([change])
        return [each + others for each in found]

    @torch.no_grad()
    def judge(
        self,
        sigma: Tensor,
        threshold: Tensor,
        scale: Tensor,
        reference: Tensor,
        held: Sequence[int],
        *,
        update: Tensor,
        frobenius: Tensor,
        known: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Judge the step after the action by sums, and undo it if rejected, as `settle` does.

        ``update`` and ``frobenius`` are norms of layers, float32 [L]; ``known``, 0-d bool: all
        ranks have given their shares.
        """
        names = [layer.name for layer in self._layers]
        updates, sizes = (dict(zip(names, x.unbind(), strict=True)) for x in (update, frobenius))
        self._look = Look(known, updates, sizes, update.amax())
        strain, said = self.settle(sigma, threshold, scale, reference, held)
        if not (reading_is_free(self.device) and bool(known)):
            assert self._accepted is not None, "by settle"
            self._snapshots.renew(~known, self._kept, self._accepted)
        return strain, said

    def lose(self, name: str) -> None:
        """Say that a layer is gone from the model: its step would be missing in every sum."""
        log.warning("snc: %s is gone: the guard judges no step any more", name)

    def _by_parameter(self) -> dict[int, list[int]]:
        of: dict[int, list[int]] = {}
        for i, layer in enumerate(self._layers):
            if (parameter := parameter_of(layer)) is not None:
                of.setdefault(id(parameter), []).append(i)
        return of


def guard_over(
    model: nn.Module,
    layers: Sequence[Layer],
    optimizer: torch.optim.Optimizer | None,
    guard: bool | GuardSettings,
    *,
    sharded: bool,
) -> Guard | None:
    """Return the guard that a job asks for, None if it wants none."""
    if not guard:
        return None
    settings = GuardSettings() if guard is True else guard
    return (ShardedGuard if sharded else Guard)(model, layers, optimizer, settings)


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all entries, 0-d float64."""
    some = [x for x in tensors if x.numel()] or [tensors[0].new_zeros(1)]
    return torch.stack(norms(some)).double().square().sum()


def _entries(pair: tuple[Tensor, Tensor]) -> int:
    return pair[1].numel()
