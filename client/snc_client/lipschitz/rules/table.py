"""The operations that have a bound. Any other is refused."""

from __future__ import annotations

from typing import Any, Final

from snc_client.lipschitz.rules.activations import SLOPES, entrywise
from snc_client.lipschitz.rules.arithmetic import (
    DIVISIONS,
    MEANS,
    REVERSED,
    added,
    chosen,
    clamped,
    joined,
    multiplied,
    normalised,
    repeated,
    scattered,
    summed,
    with_slopes,
)
from snc_client.lipschitz.rules.linear import convolution, dense
from snc_client.lipschitz.rules.pooling import AVERAGES, averaged, largest_of_windows
from snc_client.lipschitz.rules.rule import Call, Factors, Rule, operations

# They read each entry at most once and do nothing else with it.
_MOVED: Final = operations(
    "view", "view_copy", "_unsafe_view", "reshape", "_reshape_alias", "permute", "permute_copy",
    "transpose.int", "transpose_copy.int", "t", "t_copy", "squeeze", "squeeze.dim", "squeeze.dims",
    "squeeze_copy", "squeeze_copy.dim", "squeeze_copy.dims", "unsqueeze", "unsqueeze_copy", "clone",
    "_to_copy", "alias", "alias_copy", "detach", "contiguous", "select.int", "select_copy.int",
    "slice.Tensor", "slice_copy.Tensor", "flip", "roll", "constant_pad_nd", "pixel_shuffle",
    "pixel_unshuffle", "unbind.int", "unbind_copy.int", "split.Tensor", "split_copy.Tensor",
    "split_with_sizes", "split_with_sizes_copy", "tril", "triu", "masked_fill.Scalar",
)  # fmt: skip
# Sorting, the largest entry and the softmax move no further apart what they are given.
_CLOSER: Final = operations("sort", "sort.stable", "amax", "amin", "max.dim", "min.dim", "_softmax")
_BATCH_NORMS: Final = operations(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"
)
_POOLS: Final = operations("max_pool2d_with_indices", "max_pool3d_with_indices")
_CHOICES: Final = operations("maximum", "minimum", "where.self")
_JOINS: Final = operations("cat", "stack")
_SCATTERS: Final = operations("slice_scatter", "select_scatter")

FIRST_ONLY: Final = frozenset([*_CLOSER, *_BATCH_NORMS, *_POOLS])
"""Of their results only the first has a bound: the others are indices or statistics."""
APART: Final = frozenset([*_JOINS, *_CHOICES, *_SCATTERS])
"""Their arguments reach different entries of the result: squares add up."""


def _unchanged(call: Call) -> Factors:
    return {call.only(): 1.0}


RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys([*_MOVED, *_CLOSER], _unchanged),
    **dict.fromkeys(SLOPES, entrywise),
    **dict.fromkeys(operations("mm", "addmm", "bmm"), dense),
    **dict.fromkeys(operations("convolution"), convolution),
    **dict.fromkeys(
        [*operations("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar"), *REVERSED], added
    ),
    **dict.fromkeys([*operations("mul.Tensor", "mul.Scalar"), *DIVISIONS], multiplied),
    **dict.fromkeys(_JOINS, joined),
    **dict.fromkeys(_SCATTERS, scattered),
    **dict.fromkeys(operations("expand", "repeat"), repeated),
    **dict.fromkeys([*MEANS, *operations("sum.dim_IntList", "sum")], summed),
    **dict.fromkeys(_CHOICES, chosen),
    **dict.fromkeys(operations("_prelu_kernel"), with_slopes),
    **dict.fromkeys(operations("clamp", "clamp_min", "clamp_max"), clamped),
    **dict.fromkeys(_BATCH_NORMS, normalised),
    **dict.fromkeys(_POOLS, largest_of_windows),
    **dict.fromkeys(AVERAGES, averaged),
}
