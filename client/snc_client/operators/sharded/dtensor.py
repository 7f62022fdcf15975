"""The shard of a DTensor: FSDP2, tensor parallelism, and both on a mesh of several dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from snc_client.operators.entries import plain
from snc_client.operators.sharded.shard import Box, Group, Shard, ShardError


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether it is a DTensor, by its attributes: the library is not imported."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def reaches_all_ranks(tensor: Any) -> bool:
    """Return whether it is a DTensor on a mesh of all processes of the job."""
    return is_dtensor(tensor) and bool(tensor.device_mesh.size() == dist.get_world_size())


def is_whole(tensor: Any) -> bool:
    """Return whether it is a DTensor of which every process holds all entries."""
    return is_dtensor(tensor) and all(type(p).__name__ == "Replicate" for p in tensor.placements)


def local_part(tensor: Tensor) -> Tensor:
    """Return what a DTensor holds in this process, without gradient history; other tensors as is.

    It shares the DTensor's memory.
    """
    if not is_dtensor(tensor):
        return plain(tensor)
    inside: Any = tensor
    return plain(inside._local_tensor)  # to_local() would be recorded by autograd


def laid_like(parameter: Any, local: Tensor) -> Tensor:
    """Return these entries, as `local_part` has them, as a DTensor laid like ``parameter``."""
    kind = type(parameter.data)
    found: Tensor = kind.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return found


def shard_of_dtensor(tensor: Any) -> Shard | None:
    """Return where the local part lies; None if every process holds all of it.

    Raises `ShardError` for a mesh without this process, for placements other than Shard,
    _StridedShard and Replicate, and where two dimensions are each cut by several mesh dimensions.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    here = mesh.get_coordinate()
    if here is None:
        raise ShardError("a DTensor on a mesh without this rank: no part of it lies here")
    kinds = [_kind(placement) for placement in placements]
    cut: dict[int, list[int]] = {}  # dimension of the tensor -> dimensions of the mesh
    for axis, (kind, placement) in enumerate(zip(kinds, placements, strict=True)):
        if kind == "shard":
            cut.setdefault(placement.dim % tensor.ndim, []).append(axis)
    if not cut:
        return None
    along, other = _sides(cut)
    local = local_part(tensor)
    indices = [
        _indices(tensor.shape[d], mesh, placements, cut.get(d, [])) for d in range(tensor.ndim)
    ]
    size = tuple(map(_length, indices))
    if size != tuple(local.shape):
        raise ShardError(
            f"a DTensor whose part must be {size}, got {tuple(local.shape)}: not made by chunks"
        )
    replicas = [axis for axis, kind in enumerate(kinds) if kind == "replicate"]
    return Shard(
        shape=tuple(tensor.shape),
        boxes=tuple(_boxes(local, indices)),
        group=_all_of(mesh),
        axis=along,
        counts=all(here[axis] == 0 for axis in replicas),
        other=other,
        across=None if other is None else mesh.get_group(cut[other][0]),
    )


def replicas_of(tensor: Any) -> Group | None:
    """Return the processes that hold a DTensor of which each has all; None where it is one."""
    mesh = tensor.device_mesh
    if mesh.get_coordinate() is None:
        raise ShardError("a DTensor on a mesh without this rank: no part of it lies here")
    return None if mesh.size() == 1 else _all_of(mesh)


def _kind(placement: Any) -> str:
    name = type(placement).__name__
    kinds = {"Shard": "shard", "_StridedShard": "shard", "Replicate": "replicate"}
    if name not in kinds:
        raise ShardError(f"a DTensor of placement {placement}: its entries are no weights yet")
    return kinds[name]


def _sides(cut: dict[int, list[int]]) -> tuple[int, int | None]:
    """Return the dimension along which products stay distributed, and the other one, if any."""
    if len(cut) == 1:
        return next(iter(cut)), None
    single = [d for d, axes in cut.items() if len(axes) == 1]
    if len(cut) > 2 or not single:
        raise ShardError(
            "a DTensor cut in too many ways: two dimensions, one of them once, at most"
        )
    inner = max(single, key=lambda d: cut[d])  # the last mesh dimension has the nearest neighbours
    return next(d for d in cut if d != inner), inner


def _indices(size: int, mesh: Any, placements: Sequence[Any], axes: Sequence[int]) -> list[range]:
    """Return the indices of one dimension that lie here, in the order of the local part."""
    here, found = mesh.get_coordinate(), [range(size)]
    for axis in _order(mesh, placements, axes):
        pieces = getattr(placements[axis], "split_factor", 1)
        if pieces > 1 and pieces == _later(mesh, axes, axis):
            pieces = 1  # those dimensions have been applied before
        parts = [_chunk(found, pieces, which) for which in range(pieces)]
        chunks = [_chunk(part, mesh.size(axis), here[axis]) for part in parts]
        found = [run for chunk in chunks for run in chunk]
    return found


def _order(mesh: Any, placements: Sequence[Any], axes: Sequence[int]) -> list[int]:
    """Return the mesh dimensions in the order in which they cut: FSDP cuts what the others left."""
    last = [
        axis
        for axis in axes
        if (factor := getattr(placements[axis], "split_factor", 1)) > 1
        and factor == _later(mesh, axes, axis)
    ]
    return [axis for axis in axes if axis not in last] + last[::-1]


def _later(mesh: Any, axes: Sequence[int], axis: int) -> int:
    parts = 1
    for other in axes:
        parts *= mesh.size(other) if other > axis else 1
    return parts


def _chunk(runs: Sequence[range], parts: int, which: int) -> list[range]:
    """Return one of ``parts`` of the indices, divided as `torch.chunk` does: the last are short."""
    size = -(-_length(runs) // parts)
    start, stop, at, found = which * size, (which + 1) * size, 0, []
    for run in runs:
        here = run[max(start - at, 0) : max(stop - at, 0)]
        at += len(run)
        if here:
            found.append(here)
    return found


def _length(runs: Sequence[range]) -> int:
    return sum(map(len, runs))


def _boxes(local: Tensor, indices: Sequence[Sequence[range]]) -> list[Box]:
    """Return the local part as boxes of consecutive indices."""
    found = [Box(local, ())]
    for axis, here in enumerate(indices):
        found = [
            Box(box.local.narrow(axis, at, length), (*box.start, start))
            for box in found
            for at, start, length in _places(here)
        ]
    return found


def _places(runs: Sequence[range]) -> list[tuple[int, int, int]]:
    """Return (place, first index, length) of each run of consecutive indices; one at least."""
    places: list[tuple[int, int, int]] = []
    at = 0
    for run in runs:
        if places and run.start == places[-1][1] + places[-1][2]:
            places[-1] = (*places[-1][:2], places[-1][2] + len(run))
        else:
            places.append((at, run.start, len(run)))
        at += len(run)
    return places or [(0, 0, 0)]


def _all_of(mesh: Any) -> Group:
    """Return the group of all ranks of the mesh, or these ranks where no group is known."""
    if mesh.ndim == 1:
        group: Group = mesh.get_group()
        return group
    ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
    world = dist.group.WORLD
    if world is not None and ranks == tuple(range(dist.get_world_size())):
        return world
    return ranks
