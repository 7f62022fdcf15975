"""Entrywise functions: the interval of their slopes, for every argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch

from snc_client.lipschitz.graph import Refusal
from snc_client.lipschitz.rounding import times
from snc_client.lipschitz.rules.rule import Call, Factors, finite

Slopes: TypeAlias = tuple[float, float]
_aten = torch.ops.aten

# Bounds of the extreme slopes, to more than the digits written: 1.12890 at sqrt(2) of x Phi(x),
# 1.12894 of its tanh form; 1.09984 of x sigmoid(x); 1.08850 of mish; 1.5 of hardswish at 3.
_GELU: Final = (-0.13, 1.13)
_SILU: Final = (-0.1, 1.1)
_MISH: Final = (-0.115, 1.09)
_HARDSWISH: Final = (-0.5, 1.5)


def _leaky(args: Mapping[str, Any]) -> Slopes:
    slope = finite(args["negative_slope"])
    return min(slope, 1.0), max(slope, 1.0)


def _elu(args: Mapping[str, Any]) -> Slopes:
    alpha, scale, inner = (finite(args[x]) for x in ("alpha", "scale", "input_scale"))
    if min(alpha, scale, inner) < 0:
        raise Refusal("factors below zero")
    return 0.0, max(scale, times(alpha, scale, inner))


def _softplus(args: Mapping[str, Any]) -> Slopes:
    # Above the threshold the function is x: a leap of exp(-threshold) / beta, 2e-9 by default.
    if not finite(args["beta"]) > 0 or finite(args["threshold"]) < 20:
        raise Refusal("a threshold below 20, where it leaps")
    return 0.0, 1.0


def _always(low: float, high: float) -> Callable[[Mapping[str, Any]], Slopes]:
    return lambda _: (low, high)


SLOPES: Final[dict[Any, Callable[[Mapping[str, Any]], Slopes]]] = {
    _aten.relu.default: _always(0, 1),
    _aten.hardtanh.default: _always(0, 1),
    _aten.leaky_relu.default: _leaky,
    _aten.elu.default: _elu,
    _aten.softplus.default: _softplus,
    _aten.tanh.default: _always(0, 1),
    _aten.sigmoid.default: _always(0, 0.25),
    _aten.hardsigmoid.default: _always(0, 0.17),
    _aten.gelu.default: _always(*_GELU),
    _aten.silu.default: _always(*_SILU),
    _aten.mish.default: _always(*_MISH),
    _aten.hardswish.default: _always(*_HARDSWISH),
    _aten.abs.default: _always(-1, 1),
    _aten.neg.default: _always(-1, -1),
    _aten.sin.default: _always(-1, 1),
    _aten.cos.default: _always(-1, 1),
    _aten.atan.default: _always(0, 1),
    _aten.erf.default: _always(0, 1.13),
}


def entrywise(call: Call) -> Factors:
    """Apply a function to each entry."""
    low, high = SLOPES[call.node.target](call.args)
    return {call.only(): max(abs(low), abs(high))}
