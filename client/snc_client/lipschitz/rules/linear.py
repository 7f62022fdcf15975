"""Products with constant weights: certified norms of matrices and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snc_client.bounds import convolution_bound
from snc_client.certificate import certify, sigma_upper
from snc_client.estimator import BlockPower
from snc_client.lipschitz.graph import Refusal, shape
from snc_client.lipschitz.rounding import plus, times
from snc_client.lipschitz.rules.rule import Call, Factors, finite
from snc_client.operators import Adjoint, Convolution, Geometry, Matrix

SMALL = 1024  # the smaller side of a matrix whose singular values are computed
ITERATIONS = 48  # of the power iteration on a larger one
NEAR = 1e-7  # relative distance of the first bound that is tried


def dense(call: Call) -> Factors:
    """Multiply with a matrix that is constant; ``addmm`` adds a third one."""
    names = ("mat1", "mat2") if "mat1" in call.args else ("self", "mat2")
    moving = [name for name in names if call.moves(name)]
    if len(moving) == 2:
        raise Refusal("a product of two values that depend on the input")
    factors: Factors = {}
    if "mat1" in call.args and call.moves("self"):
        factors[call.args["self"]] = times(abs(finite(call.args["beta"])), _bias(call))
    for name in moving:
        weight = call.graph.tensor(call.args[names[1 - names.index(name)]])
        norm = times(abs(finite(call.args.get("alpha", 1))), norm_of(weight))
        factors[call.args[name]] = plus((factors.get(call.args[name], 0.0), norm))
    return factors


def _bias(call: Call) -> float:
    return call.repeats(call.args["self"])


def norm_of(weight: Tensor) -> float:
    """Return a certified bound of the largest norm in a matrix or a stack [..., m, n], float64."""
    if weight.numel() == 0:
        return 0.0
    if weight.ndim > 2:
        return max(norm_of(x) for x in weight.flatten(0, -3).unbind())
    if not bool(weight.isfinite().all()):
        return math.inf
    sigma = _estimated(weight)
    near = sigma * (1 + NEAR)
    if near > 0 and certify(weight, near, arithmetic="float64"):
        return near
    estimate = torch.tensor(sigma, dtype=torch.float64)
    return float(sigma_upper(weight, estimate, arithmetic="float64"))


def _estimated(weight: Tensor) -> float:
    if min(weight.shape) <= SMALL:
        return float(torch.linalg.matrix_norm(weight, ord=2))
    operator = Matrix(weight.float())
    power = BlockPower([operator.shape], device=weight.device)
    return max(float(power.step_([operator]).sigma) for _ in range(ITERATIONS))


def convolution(call: Call) -> Factors:
    """Convolve with a constant kernel, at the size that the input has."""
    x = call.only("input")
    return {x: _norm_of_convolution(call.graph.tensor(call.args["weight"]), shape(x), call.args)}


def _norm_of_convolution(weight: Tensor, inputs: Sequence[int], args: Any) -> float:
    if not bool(weight.isfinite().all()):
        return math.inf
    dimensions = weight.ndim - 2
    stride, padding, dilation = (
        tuple(int(v) for v in _each(args[name], dimensions))
        for name in ("stride", "padding", "dilation")
    )
    grid = tuple(inputs[-dimensions:])
    pads = tuple((p, p) for p in padding)
    groups = int(args["groups"])
    if not args["transposed"]:
        geometry = Geometry(grid, stride, pads, dilation, groups)
        return _bounded(Convolution(weight, geometry))
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    extra = _each(args["output_padding"], dimensions)
    axes = zip(grid, stride, padding, extents, extra, strict=True)
    outputs = tuple((h - 1) * s - 2 * p + k + int(e) for h, s, p, k, e in axes)
    geometry = Geometry(outputs, stride, pads, dilation, groups, limit=grid)
    return _bounded(Adjoint(Convolution(weight, geometry)))


def _bounded(operator: Convolution | Adjoint) -> float:
    found = float(convolution_bound(operator))
    if math.isnan(found):
        raise Refusal("a convolution too large to be bounded")
    return found


def _each(value: Any, count: int) -> Sequence[Any]:
    return tuple(value) * count if len(value) == 1 else tuple(value)
