"""Which kinds of shards are known: one function for each, asked in turn."""

from __future__ import annotations

from torch import Tensor

from snc_client.operators.sharded.dtensor import is_dtensor, shard_of_dtensor
from snc_client.operators.sharded.marked import (
    is_marked,
    is_zero,
    shard_of_marked,
    shard_of_zero,
)
from snc_client.operators.sharded.shard import Shard


def shard_of(parameter: Tensor, values: Tensor | None = None) -> Shard | None:
    """Return where the part of a parameter lies that this process holds; None if it holds all.

    ``values``: of these instead, which have the parameter's shape and are distributed in its way or
    another: its gradient, a moment of the optimizer. No collective, no wait, no read of entries.
    Raises `ShardError` with the reason, one sentence, for a part that cannot be measured.
    """
    if is_dtensor(parameter):
        return shard_of_dtensor(parameter if values is None else values)
    if is_zero(parameter):
        return shard_of_zero(parameter, values)
    if is_marked(parameter):
        return shard_of_marked(parameter, values)
    return None
