"""Groups: the process groups of sharded layers, and sums over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch.distributed as dist
from torch import Tensor

from snc_client.operators.sharded import Group

Members: TypeAlias = tuple[int, ...]


def members(group: Group) -> Members:
    """Return the global ranks of a group, in order."""
    return group if isinstance(group, tuple) else tuple(sorted(dist.get_process_group_ranks(group)))


class Groups:
    """One process group for each set of ranks that layers are summed over.

    Groups that no library has made are made here, by their ranks alone: others need not take part.
    To be made where all ranks are known to have come, as torch's own groups are.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self._of: dict[Members, Any] = {}
        for group in groups:
            if not isinstance(group, tuple):
                self._of.setdefault(members(group), group)
        for ranks in sorted({group for group in groups if isinstance(group, tuple)}):
            if ranks not in self._of:
                self._of[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)

    def sum_(self, parts: Mapping[Members, Tensor]) -> None:
        """Sum each vector over its group, in place: one collective a group, in one order.

        Groups may overlap; because every process takes them in the same order, none waits for one
        that waits for it.
        """
        for ranks in sorted(parts):
            dist.all_reduce(parts[ranks], group=self._of[ranks])
