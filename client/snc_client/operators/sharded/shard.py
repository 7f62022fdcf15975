"""Shard: which part of a stored tensor lies here, and with whom sums over its parts are made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch.distributed as dist
from torch import Tensor

from snc_client.operators.entries import plain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Group: TypeAlias = "ProcessGroup | tuple[int, ...]"
"""A process group, or the ranks of one that has to be made: never while a shard is looked up."""


class ShardError(ValueError):
    """A sharded tensor that cannot be measured; the message is the reason, for the coverage."""


@dataclass(frozen=True, eq=False)
class Box:
    """A box of a tensor: ``local`` are its entries, a view of the memory that is to be written."""

    local: Tensor
    start: tuple[int, ...]
    """Where the box begins in the whole tensor, one number per dimension."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of one tensor of ``shape`` that lies in this process.

    Each entry of the tensor lies in the ``boxes`` of exactly one process among those of ``group``
    that have ``counts``; the others hold replicas. Everything but ``boxes``, ``counts`` and
    ``across`` is equal on all processes of the group, and none of it depends on the entries.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    """None, or empty ones, where no entry lies here: such a process takes part with zeros."""
    group: Group
    """Every process that holds a part or a replica of the tensor."""
    axis: int = 0
    """The dimension that is cut; of two, the one along which W V stays distributed."""
    counts: bool = True
    """Whether this process's boxes enter sums over the group. False: another one's replica."""
    other: int | None = None
    """The second dimension that is cut, if any."""
    across: Group | None = None
    """With ``other``: the processes that hold the same indices of ``axis``."""
    cuts: tuple[int, ...] = ()
    """Of flat memory: the offsets in the flattened tensor at which another process begins."""


def flat_boxes(memory: Tensor, start: int, shape: Sequence[int]) -> tuple[Box, ...]:
    """Return the boxes of an interval of a flattened tensor, at most 2 d - 1 for d dimensions.

    ``memory`` (1-d) holds the entries from ``start`` on, in the order of a contiguous tensor of
    ``shape``; the boxes are views of it.
    """
    found = _boxes(start, start + memory.numel(), tuple(shape), ())
    boxes, at = [], 0
    for where, size in found:
        count = math.prod(size)
        boxes.append(Box(plain(memory)[at : at + count].view(size), where))
        at += count
    return tuple(boxes)


def _boxes(
    start: int, stop: int, shape: tuple[int, ...], before: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (where, size) of the boxes of [start, stop), in the order of the memory."""
    if start >= stop:
        return
    ones = (1,) * len(before)
    if len(shape) == 1:
        yield (*before, start), (*ones, stop - start)
        return
    rest = math.prod(shape[1:])
    first, last = -(-start // rest), stop // rest  # the whole slices are [first, last)
    if first > last:  # within one slice
        yield from _boxes(start - last * rest, stop - last * rest, shape[1:], (*before, last))
        return
    if start < first * rest:
        inside = start - (first - 1) * rest
        yield from _boxes(inside, rest, shape[1:], (*before, first - 1))
    if first < last:
        yield (*before, first, *(0,) * (len(shape) - 1)), (*ones, last - first, *shape[1:])
    if last * rest < stop:
        yield from _boxes(0, stop - last * rest, shape[1:], (*before, last))


def members(group: Group) -> tuple[int, ...]:
    """Return the global ranks of a group, in order."""
    return group if isinstance(group, tuple) else tuple(sorted(dist.get_process_group_ranks(group)))
