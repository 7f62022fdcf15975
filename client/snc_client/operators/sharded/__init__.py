"""Weights of which this process holds a part: where the part lies, and how to multiply with it."""

from snc_client.operators.sharded.dtensor import (
    is_dtensor,
    is_whole,
    laid_like,
    local_part,
    reaches_all_ranks,
    replicas_of,
)
from snc_client.operators.sharded.flat import FlatPlace
from snc_client.operators.sharded.known import shard_of
from snc_client.operators.sharded.marked import attached_master, gathered
from snc_client.operators.sharded.matrix import Rectangle, ShardedMatrix
from snc_client.operators.sharded.shard import Box, Group, Shard, ShardError, flat_boxes, members

__all__ = [
    "Box",
    "FlatPlace",
    "Group",
    "Rectangle",
    "Shard",
    "ShardError",
    "ShardedMatrix",
    "attached_master",
    "flat_boxes",
    "gathered",
    "is_dtensor",
    "is_whole",
    "laid_like",
    "local_part",
    "members",
    "reaches_all_ranks",
    "replicas_of",
    "shard_of",
]
