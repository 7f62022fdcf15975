"""Which optimizer steps each layer, so that a hook writes only what its own optimizer steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from snc_client.layer_row import Mask
from snc_client.layers import Layer
from snc_client.operators.sharded import local_part
from snc_client.policy import HOLDING, LayerPolicy

log = logging.getLogger("snc")

NOWHERE = frozenset({-1, 0})  # tensors without storage, and empty ones

MasterOf = Callable[[Layer], Tensor | None]


class Ownership:
    """Which optimizer steps each layer, as of the last call of `limited`.

    ``optimizers`` may be empty: then the loop calls `step` itself and every layer may be written.
    ``master_of`` returns the full-precision master of a layer, if it has one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        master_of: MasterOf,
    ) -> None:
        self._model = model
        self._optimizers = tuple(optimizers)
        self._master_of = master_of
        self._said: set[str] = set()
        self.others: Mask | None = None
        """Which layers another optimizer than the first steps, bool [L]; None for one optimizer."""

    def of(self, place: int) -> Mask:
        """Return which layers the optimizer at ``place`` steps, bool [L]."""
        owned: Mask = self._owned == place
        return owned

    def limited(
        self, layers: Sequence[Layer], policies: Sequence[LayerPolicy]
    ) -> tuple[LayerPolicy, ...]:
        """Return the policies, with ``observe`` for layers that no optimizer steps.

        Such layers are named in a warning, once. A hook must not write them: a backward pass that
        is still to come may need the weight as it was in the forward pass. So is it with sharded
        layers that another optimizer than the first steps: they are measured once at a step.
        """
        found_owners = owners(self._model, layers, self._optimizers, self._master_of)
        self._owned = np.array([-1 if x is None else x for x in found_owners], np.int64)
        self.others = self._owned > 0 if len(self._optimizers) > 1 else None
        found, unowned, late = list(policies), list[str](), list[str]()
        for i, owner in enumerate(found_owners):
            if (owner is None or (owner > 0 and layers[i].sharded)) and found[i].action in HOLDING:
                found[i] = replace(policies[i], action="observe")
                (unowned if owner is None else late).append(layers[i].name)
        self._say(
            unowned, "no given optimizer steps them", "give all optimizers as optimizer=[...]"
        )
        self._say(
            late,
            "another optimizer than the first steps these shards",
            "give the optimizer that steps them first",
        )
        return tuple(found)

    def _say(self, names: Sequence[str], why: str, cure: str) -> None:
        if new := [name for name in names if name not in self._said]:
            self._said.update(new)
            log.warning("snc: measured, not held, because %s: %s: %s", why, ", ".join(new), cure)


def owners(
    model: nn.Module,
    layers: Sequence[Layer],
    optimizers: Sequence[torch.optim.Optimizer],
    master_of: MasterOf,
) -> list[int | None]:
    """Return for each layer the index of the optimizer that steps it, None where none does.

    An optimizer steps a layer if it holds the memory that enforcement writes, or the layer's
    master. An optimizer that holds no parameter of ``model`` steps copies of them, in a way that is
    unknown here: it counts for every layer that no other one holds. Without an optimizer, every
    layer has the index 0. Cost: one pass over parameters and layers.
    """
    if not optimizers:
        return [0] * len(layers)
    held = [_memory(optimizer) | _identities(optimizer) for optimizer in optimizers]
    written = [
        {_identity(layer.parameter())} if layer.sharded else _written(layer, master_of)
        for layer in layers
    ]
    found = [next((k for k, memory in enumerate(held) if memory & here), None) for here in written]
    ours = {x for p in model.parameters() for x in (_place(p), _identity(p))} - NOWHERE
    copies = next((k for k, memory in enumerate(held) if not memory & ours), None)
    return [copies if owner is None else owner for owner in found]


def _memory(optimizer: torch.optim.Optimizer) -> set[int]:
    places = {_place(p) for group in optimizer.param_groups for p in group["params"]}
    return places - NOWHERE


def _identities(optimizer: torch.optim.Optimizer) -> set[int]:
    return {_identity(p) for group in optimizer.param_groups for p in group["params"]}


def _identity(parameter: object) -> int:
    """Return a key of the object, which is no address: a shard may have no memory on a rank."""
    return -2 - id(parameter)


def _written(layer: Layer, master_of: MasterOf) -> set[int]:
    try:
        master = master_of(layer)
        parts = [*layer.factors(), *([] if master is None else [master])]
    except LookupError:
        return set()
    return {_place(part) for part in parts}


def _place(tensor: Tensor) -> int:
    """Return where the memory of a tensor is; one of `NOWHERE` where it has none of its own."""
    try:
        return local_part(tensor).untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return -1
