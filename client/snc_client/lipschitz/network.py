"""lipschitz_bound: a certified Lipschitz constant of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snc_client.lipschitz.flow import INPUT, OUTPUT, Flow
from snc_client.lipschitz.graph import Graph
from snc_client.lipschitz.result import LipschitzBound, Refused, SubNetwork
from snc_client.lipschitz.rounding import times
from snc_client.lipschitz.trace import NotTraced, traced
from snc_client.one_forward import run_once


def lipschitz_bound(module: nn.Module, example_input: Tensor | Sequence[Tensor]) -> LipschitzBound:
    """Return a certified Lipschitz constant of ``module`` on inputs of the example's shape.

    ``example_input`` is a tensor, or several that the module takes in this order: only their
    shapes, dtypes and devices matter. What integers are used for is refused. The bound is of the
    function that the module computes in the mode in which it is: call ``eval()`` first. It holds
    for every input of that shape, in exact arithmetic with the weights as they are stored.

    The operations of one forward pass are recorded (torch.fx, without values) and bounded one by
    one: dense layers and convolutions, at the size of their input, by certificates; activations,
    pooling, sums, concatenations and the like by known constants, in float64 rounded up. Dense
    layers with entrywise functions in between are also bounded together (`lipschitz.lmi`). Any
    operation without a rule is refused by name, LayerNorm, RMSNorm and attention among them. Then
    ``bound`` is infinite, and ``parts`` bounds the sub-networks between refused operations.

    A forward pass that branches on values cannot be recorded. Then the children of a Sequential are
    bounded one by one, and of another module those children that can be; ``how`` says which.

    Not covered: rounding of the forward pass; Python code that does something else at the next
    call. Costs a traced forward pass and, per layer, singular values and a certificate on the CPU;
    up to ten seconds more for each chain of dense layers. Waits for the device, and writes
    neither weights nor buffers. Raises ValueError for an example without a tensor.
    """
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not inputs or not all(isinstance(x, Tensor) and x.numel() for x in inputs):
        given = ", ".join(type(x).__name__ for x in inputs) or "none"
        raise ValueError(f"example_input must be one or more tensors with entries, got {given}")
    return _bounded(_unwrapped(module), [x.detach() for x in inputs])


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside what torch wraps around it for ranks or its compiler."""
    for name in ("_orig_mod", "module"):
        inner = getattr(module, name, None)
        if type(module).__module__.startswith("torch.") and isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return module


def _bounded(module: nn.Module, inputs: Sequence[Tensor]) -> LipschitzBound:
    try:
        trace = traced(module, inputs)
    except NotTraced as error:
        return _in_pieces(module, inputs, str(error))
    return Flow(Graph(trace), module).result()


def _in_pieces(module: nn.Module, inputs: Sequence[Tensor], why: str) -> LipschitzBound:
    """Bound the children: all of them make the bound of a Sequential, and parts of another."""
    refused = Refused("", type(module).__name__, f"cannot be traced, {why}")
    children = dict(module.named_children())
    taken = _arguments(module, inputs) if children else {}
    found = {name: _bounded(children[name], taken[name]) for name in taken}
    if _in_sequence(module) and found and set(found) == set(children):
        return _sequence(found)
    return LipschitzBound(
        bound=math.inf,
        product=math.inf,
        how="modules",
        used=(),
        refused=(refused, *(x for n, b in found.items() for x in _inside(n, b).refused)),
        parts=tuple(part for n, b in found.items() for part in _as_parts(n, b)),
    )


def _in_sequence(module: nn.Module) -> bool:
    """Return whether a call runs the children one after the other, and nothing else."""
    plain = type(module) is nn.Sequential and "forward" not in vars(module)
    return plain and not module._forward_hooks and not module._forward_pre_hooks


def _sequence(found: dict[str, LipschitzBound]) -> LipschitzBound:
    inside = [_inside(name, bound) for name, bound in found.items()]
    refused = tuple(x for each in inside for x in each.refused)
    bound = times(*(x.bound for x in inside))
    return LipschitzBound(
        bound=bound,
        product=times(*(x.product for x in inside)),
        how="sequential",
        used=tuple(x for each in inside for x in each.used),
        refused=refused,
        parts=tuple(part for n, b in found.items() for part in _as_parts(n, b))
        if math.isinf(bound)
        else (),
    )


def _inside(name: str, found: LipschitzBound) -> LipschitzBound:
    """Return the result of a child with names as in its parent."""

    def full(module: str) -> str:
        return f"{name}.{module}" if module else name

    return replace(
        found,
        used=tuple(replace(x, module=full(x.module)) for x in found.used),
        refused=tuple(replace(x, module=full(x.module)) for x in found.refused),
        parts=tuple(SubNetwork(full(x.start), full(x.end), x.bound) for x in found.parts),
    )


def _as_parts(name: str, found: LipschitzBound) -> tuple[SubNetwork, ...]:
    if found.certified:
        return (SubNetwork(f"{name}.{INPUT}", f"{name}.{OUTPUT}", found.bound),)
    return _inside(name, found).parts


def _arguments(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return what each child was called with in one forward pass, if with real tensors only.

    Children that are called several times, or otherwise, are left out. Buffers and random states
    are put back.
    """
    calls: dict[str, list[list[Any]]] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(name, []).append([*args, *kwargs.values()] if not kwargs else [None])

        return record

    hooks = [
        child.register_forward_pre_hook(recorder(name), with_kwargs=True)
        for name, child in module.named_children()
        if not isinstance(child, torch.jit.ScriptModule)
    ]
    try:
        run_once(module, inputs)
    except Exception:  # whatever its forward pass does with the example: nothing is known then
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    plain = {name: only for name, (only, *more) in calls.items() if not more}
    return {
        name: args
        for name, args in plain.items()
        if args and all(isinstance(x, Tensor) and x.is_floating_point() for x in args)
    }
