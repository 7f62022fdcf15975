"""The shard of a weight in the flat memory of FSDP1: an interval of it, by FSDP's own offsets."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from snc_client.operators.sharded.shard import Group, Shard, ShardError, flat_boxes


@dataclass(frozen=True)
class FlatPlace:
    """One weight of a flat parameter; it keeps nothing alive.

    Of FSDP it reads ``FlatParamHandle`` and its ``flat_param``, as torch 2.4 to 2.13 have them.
    """

    handle: weakref.ReferenceType[Any]
    index: int
    replicas: Group | None = None
    """With HYBRID_SHARD: the processes that hold the same interval as this one."""

    @property
    def key(self) -> tuple[int, int]:
        """Return what is equal for all names of one weight, also where it has no memory here."""
        return id(self.handle()), self.index

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the whole weight."""
        return tuple(self._flat().param._shapes[self.index])

    def parameter(self) -> Tensor:
        """Return what an optimizer holds: the weight's own parameter, or the flat one.

        Raises LookupError once FSDP's module is gone.
        """
        flat = self._flat().param
        found: Tensor = flat if flat._params is None else flat._params[self.index]
        return found

    def shard(self, parameter: Tensor | None = None, values: Tensor | None = None) -> Shard:
        """Return where the part lies that this process holds, as `shard_of` does.

        ``values`` are laid as `parameter` is: this weight's interval, or that of all weights.
        """
        flat = self._flat()
        if not flat.param._contiguities[self.index]:
            raise ShardError("flat memory of FSDP1 with a weight whose rows are not in order")
        here, shape = flat.param._shard_param_infos[self.index], self.shape
        memory = flat.memory if values is None else values.reshape(-1)
        if not here.in_shard:
            memory, start = memory[:0], 0
        else:
            start = here.intra_param_start_idx
            if values is None or memory.numel() == flat.memory.numel():
                memory = memory[here.offset_in_shard :][: here.numel_in_shard]
            if memory.numel() != here.numel_in_shard:
                raise ShardError(
                    f"values must have {here.numel_in_shard} entries here, got {memory.numel()}"
                )
        group = flat.group
        counts = flat.sharded or dist.get_rank(group) == 0
        if self.replicas is not None:
            counts = counts and dist.get_rank(self.replicas) == 0  # type: ignore[arg-type]
            group = _both(group, self.replicas)
        return Shard(
            shape=shape,
            boxes=flat_boxes(memory, start, shape),
            group=group,
            counts=counts,
            cuts=_cuts(flat, self.index, math.prod(shape)),
        )

    def _flat(self) -> _Flat:
        handle = self.handle()
        if handle is None:
            raise LookupError("a weight of FSDP1 must still be in the model, it is gone")
        return _Flat(handle)


class _Flat:
    """A flat parameter with what its handle knows of it."""

    def __init__(self, handle: Any) -> None:
        self.param, self.group = handle.flat_param, handle.process_group
        self.sharded: bool = handle.uses_sharded_strategy

    @property
    def memory(self) -> Tensor:
        """Return this process's interval, also while the whole is gathered for a forward pass."""
        # FSDP sets _local_shard at the first forward pass.
        memory: Tensor = getattr(self.param, "_local_shard", self.param)
        return memory.detach()


def _cuts(flat: _Flat, index: int, size: int) -> tuple[int, ...]:
    """Return the offsets in the flattened weight at which another process's interval begins."""
    if not flat.sharded:
        return ()
    start, seen = 0, -1
    for numel, is_padding in zip(
        flat.param._numels_with_padding, flat.param._is_padding_mask, strict=True
    ):
        seen += not is_padding
        if seen == index and not is_padding:
            break
        start += numel
    length = flat.param._sharded_size.numel()
    bounds = range(length, length * flat.group.size(), length)
    return tuple(bound - start for bound in bounds if start < bound < start + size)


def _both(group: Group, replicas: Group) -> Group:
    """Return all processes of HYBRID_SHARD, which are those of the job."""
    world = dist.group.WORLD
    sizes = [dist.get_world_size(x) for x in (group, replicas)]  # type: ignore[arg-type]
    if world is None or math.prod(sizes) != dist.get_world_size():
        raise ShardError("flat memory of FSDP1 that is replicated over a part of the job only")
    return world
