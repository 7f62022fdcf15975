"""Pooling, padding and resampling."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from snc_client.lipschitz.graph import Refusal, shape
from snc_client.lipschitz.rounding import root, times
from snc_client.lipschitz.rules.rule import Call, Factors, operations

# Linear maps whose entries are not negative.
AVERAGES: Final = operations(
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_nearest1d.vec", "upsample_nearest2d.vec",
    "upsample_nearest3d.vec", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec",
)  # fmt: skip


def largest_of_windows(call: Call) -> Factors:
    """Take the largest entry of each window: the root of how many windows share an entry."""
    kernel, stride, dilation = (
        list(call.args[name]) for name in ("kernel_size", "stride", "dilation")
    )
    stride = stride or kernel
    dimensions = max(map(len, (kernel, stride, dilation)))
    shared = 1
    for k, s, d in zip(*(_each(x, dimensions) for x in (kernel, stride, dilation)), strict=True):
        # A window reads its start and every d-th entry after: starts are multiples of s.
        shared *= -(-k * math.gcd(s, d) // s)
    return {call.only(): root(float(shared))}


def averaged(call: Call) -> Factors:
    """Apply a linear map whose entries are not negative, such as an average.

    Its norm is at most the root of (largest sum of a row) * (largest sum of a column), by Schur's
    test. Both are read off the map itself, on an input of ones.
    """
    x = call.only("self" if "self" in call.args else "input")
    size = (1, 1, *shape(x)[-_spatial(call) :])
    ones = torch.ones(size, dtype=torch.float64, requires_grad=True)

    def given(node: Node) -> Any:
        if node is not x:
            raise Refusal("an argument beside the first that is a tensor")
        return ones

    target = call.node.target
    assert callable(target)
    with torch.enable_grad():
        rows = target(*map_arg(call.node.args, given), **map_arg(dict(call.node.kwargs), given))
        (columns,) = torch.autograd.grad(rows.sum(), ones)
    sums = times(float(rows.detach().amax()), float(columns.amax()))
    return {x: times(root(sums), 1 + 1e-12)}


def _spatial(call: Call) -> int:
    name = str(call.node.target)
    return next(d for d in (1, 2, 3) if f"{d}d" in name)


def _each(value: list[int], count: int) -> list[int]:
    return value * count if len(value) == 1 else value
