"""Sums, products with constants, means, broadcasts and choices."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.fx import Node

from snc_client.lipschitz.graph import Refusal, shape
from snc_client.lipschitz.rounding import over, plus, root, times
from snc_client.lipschitz.rules.rule import Call, Factors, finite, operations

REVERSED: Final = operations("rsub.Tensor", "rsub.Scalar")
DIVISIONS: Final = operations("div.Tensor", "div.Scalar")
MEANS: Final = operations("mean.dim", "mean.default")


def added(call: Call) -> Factors:
    """Add or subtract: each term with its own constant, repeated as it is broadcast."""
    alpha = abs(finite(call.args.get("alpha", 1)))
    by = (alpha, 1.0) if call.node.target in REVERSED else (1.0, alpha)
    factors: Factors = {}
    for name, factor in zip(("self", "other"), by, strict=True):
        if call.moves(name):
            x = call.args[name]
            factors[x] = plus((factors.get(x, 0.0), times(factor, call.repeats(x))))
    return factors


def multiplied(call: Call) -> Factors:
    """Multiply with a constant, or divide by one."""
    dividing = call.node.target in DIVISIONS
    first, second = ("self", "other") if call.moves("self") else ("other", "self")
    if call.moves(second) or (dividing and first != "self"):
        raise Refusal("a product or quotient of two values that depend on the input")
    x, other = call.args[first], call.args[second]
    if isinstance(other, Node):
        value = call.graph.tensor(other).abs()
    else:
        value = torch.tensor(abs(finite(other)), dtype=torch.float64)
    if value.numel() == 0:
        return {x: 0.0}
    extreme = float(value.amin() if dividing else value.amax())
    if math.isnan(extreme):
        return {x: math.inf}
    if dividing:
        extreme = over(1.0, extreme) if extreme else math.inf
    return {x: times(extreme, call.repeats(x))}


def joined(call: Call) -> Factors:
    """Concatenate or stack."""
    listed = list(call.args["tensors"])
    return {x: root(float(listed.count(x))) for x in call.moving}


def scattered(call: Call) -> Factors:
    """Put one value in the place of a slice of another."""
    return dict.fromkeys(call.moving, 1.0)


def repeated(call: Call) -> Factors:
    """Repeat all entries equally often."""
    x = call.only()
    return {x: call.repeats(x)}


def summed(call: Call) -> Factors:
    """Sum over n entries: sqrt(n); their mean: 1 / sqrt(n)."""
    x = call.only()
    terms = math.prod(shape(x)) / max(math.prod(shape(call.node)), 1)
    if call.node.target in MEANS:
        return {x: over(1.0, math.sqrt(terms) * (1 - 2**-50)) if terms else 0.0}
    return {x: root(terms)}


def chosen(call: Call) -> Factors:
    """Take one of two entries, the larger, the smaller or the one that a constant mask says."""
    if call.moves("condition") or call.moves("mask"):
        raise Refusal("a choice that depends on the input")
    return {x: call.repeats(x) for x in call.moving}


def with_slopes(call: Call) -> Factors:
    """Multiply entries below zero with constant slopes: PReLU."""
    slopes = call.graph.tensor(call.args["weight"]).abs()
    if math.isnan(largest := float(slopes.amax())):
        largest = math.inf
    return {call.only(): max(1.0, largest)}


def clamped(call: Call) -> Factors:
    """Limit each entry by numbers."""
    for name in ("min", "max"):
        if isinstance(call.args.get(name), Node):
            raise Refusal("limits that are tensors")
    return {call.only(): 1.0}


def normalised(call: Call) -> Factors:
    """Divide by stored standard deviations: a BatchNorm in evaluation mode."""
    if call.args.get("training", False) or call.args.get("running_var") is None:
        raise Refusal("a BatchNorm that depends on its batch: call eval()")
    x = call.only("input")
    variance = call.graph.tensor(call.args["running_var"])
    weight = call.args["weight"]
    gain = torch.ones_like(variance) if weight is None else call.graph.tensor(weight).abs()
    gains = gain / (variance + finite(call.args["eps"])).sqrt()
    if not bool(gains.isfinite().all()):
        return {x: math.inf}
    return {x: times(float(gains.amax()), 1 + 2**-48) if gains.numel() else 0.0}
