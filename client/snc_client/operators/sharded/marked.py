"""Shards that other libraries mark on a parameter: ZeRO-3 of DeepSpeed, Megatron's plain shards."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import Tensor

from snc_client.operators.entries import plain
from snc_client.operators.sharded.shard import Box, Group, Shard, ShardError, flat_boxes


def is_zero(parameter: Tensor) -> bool:
    """Return whether it is a parameter of DeepSpeed's ZeRO-3."""
    return hasattr(parameter, "ds_id") and hasattr(parameter, "ds_tensor")


def shard_of_zero(parameter: Any, values: Tensor | None = None) -> Shard:
    """Return the interval of ``ds_tensor``, or of ``values`` that are laid like it.

    Each process has the same number of entries, the last ones with padding. Read are ``ds_shape``,
    ``ds_numel``, ``ds_tensor``, ``ds_process_group`` and ``ds_zero_partition_rank``.
    """
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        raise ShardError("a weight of ZeRO-3 with a second partition (zero_hpz_partition_size)")
    memory = plain(parameter.ds_tensor if values is None else values).reshape(-1)
    size, length = int(parameter.ds_numel), int(parameter.ds_tensor.ds_numel)
    start = min(int(parameter.ds_zero_partition_rank) * length, size)
    count = min(length, size - start)
    if memory.numel() < count:
        raise ShardError(f"a weight of ZeRO-3 must have {count} entries here: {memory.numel()}")
    shape = tuple(parameter.ds_shape)
    return Shard(
        shape=shape,
        boxes=flat_boxes(memory[:count], start, shape),
        group=parameter.ds_process_group,
        cuts=tuple(range(length, size, length)),
    )


def is_marked(parameter: Tensor) -> bool:
    """Return whether it is a plain shard with Megatron's marks."""
    return getattr(parameter, "tensor_model_parallel", False) is True


def shard_of_marked(parameter: Any, values: Tensor | None = None) -> Shard:
    """Return the rows or columns that lie here: ``partition_dim``, in ``partition_stride`` stripes.

    The processes are those of Megatron's tensor-parallel group, that of experts where the mark
    ``allreduce`` is False. Replicas of other groups are measured by those, from equal numbers.
    """
    local = plain(parameter if values is None else values)
    axis = int(getattr(parameter, "partition_dim", -1))
    stripes = int(getattr(parameter, "partition_stride", 1))
    if not 0 <= axis < local.ndim or stripes < 1 or local.shape[axis] % stripes:
        raise ShardError(f"sharded with partition_dim {axis} and partition_stride {stripes}")
    group: Any = _megatron_group(experts=getattr(parameter, "allreduce", True) is False)
    ranks, here, each = group.size(), group.rank(), local.shape[axis] // stripes
    shape = tuple(n * ranks if d == axis else n for d, n in enumerate(local.shape))
    boxes = tuple(
        Box(
            local.narrow(axis, stripe * each, each),
            tuple((stripe * ranks + here) * each if d == axis else 0 for d in range(local.ndim)),
        )
        for stripe in range(stripes)
    )
    return Shard(shape=shape, boxes=boxes, group=group, axis=axis)


def _megatron_group(*, experts: bool) -> Group:
    # Not imported: a job with its marks has it loaded.
    state = sys.modules.get("megatron.core.parallel_state")
    ask = f"get_{'expert_' * experts}tensor_{'' if experts else 'model_'}parallel_group"
    get = getattr(state, ask, None)
    if get is None:
        raise ShardError(
            "sharded by the mark tensor_model_parallel, and megatron.core.parallel_state with its "
            "process groups is not loaded"
        )
    group: Group = get()
    return group


def attached_master(parameter: Any) -> Tensor | None:
    """Return the float32 master of the part that lies here, where an optimizer keeps one.

    Megatron: ``main_param``. ZeRO-3: the partition that ``safe_get_local_fp32_param`` returns. None
    where it is no other tensor, or not all of the part.
    """
    if is_zero(parameter):
        optimizer = getattr(parameter, "_z3_optimizer", None)
        found = None if optimizer is None else optimizer.get_local_fp32_param(parameter)
        size = parameter.ds_tensor.numel()
    else:
        found, size = getattr(parameter, "main_param", None), parameter.numel()
    if not isinstance(found, Tensor) or found.numel() != size:
        return None
    return found if is_zero(parameter) else found.view(parameter.shape)


def gathered(parameter: Any) -> Tensor | None:
    """Return the whole weight that ZeRO-3 keeps beside the shard for small ones, else None."""
    whole = getattr(parameter, "data", None)
    if not is_zero(parameter) or whole is None or whole.numel() != math.prod(parameter.ds_shape):
        return None
    return plain(whole)
