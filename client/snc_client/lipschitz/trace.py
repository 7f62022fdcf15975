"""The graph of one forward pass, as the operations that torch's dispatcher runs.

Python is not looked at: what a branch on shapes, a shared module, a parametrization, a functional
call or a write in place has led to is in the graph. The tensors of the pass have no values, so a
branch on a value, or a detour over numpy, fails instead of being recorded for one input.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

MODULE = "nn_module_stack"  # the field of a node's meta that torch copies for us
# What reads memory that holds no values here. Tracing itself uses the second kind.
_READS = {getattr(Tensor, x) for x in ("numpy", "__array__", "tolist", "storage", "__dlpack__")}
_INTERNAL = {Tensor.untyped_storage}


class NotTraced(Exception):
    """The forward pass could not be recorded; the message says why."""


@dataclass(frozen=True)
class Trace:
    """A recorded forward pass: the first placeholders are its inputs, the others ``constants``."""

    graph: GraphModule
    constants: Sequence[Tensor]
    """Parameters and buffers, in the order of their placeholders."""
    attributes: frozenset[int]
    """The ids of other tensors that the modules hold."""


def traced(module: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Return the graph of ``module(*inputs)``.

    Runs one forward pass on tensors without values: it computes nothing, and changes neither
    weights nor buffers. What the forward pass does to other Python objects happens. Raises
    `NotTraced`.
    """
    slots = _slots(module)
    stored = {id(tensor): tensor for tensor in slots.values()}
    for name, tensor in slots.items():
        if type(tensor.detach()) is not Tensor:
            raise NotTraced(f"{name} is a {type(tensor.detach()).__name__}, no plain tensor")

    def forward(given: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        # Of copies: a write into the input would be recorded as one at the graph's end.
        by_id = dict(zip(stored, constants, strict=True))
        named = {name: by_id[id(tensor)] for name, tensor in slots.items()}
        # Tied by hand: where one module has two names, torch would leave in it what it was lent.
        copies = tuple(x.clone() for x in given)
        return functional_call(module, named, copies, tie_weights=False)

    constants = [x.detach() for x in stored.values()]
    try:
        with torch.no_grad(), _named(module), _quiet(), _WithoutValues():
            graph = make_fx(
                functionalize(forward, remove="mutations"),
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(list(inputs), constants)
    except Exception as error:  # whatever a forward pass may raise: the caller says it
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotTraced(f"{type(error).__name__}: {first}") from error
    return Trace(graph, constants, frozenset(map(id, _attributes(module))))


class _WithoutValues(TorchFunctionMode):
    """Refuses what would read the memory of a tensor past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outside = not sys._getframe(1).f_globals.get("__name__", "").startswith("torch.")
        if func in _READS or (func in _INTERNAL and outside):
            raise NotTraced(f"{func.__name__}() reads values past torch")
        return func(*args, **(kwargs or {}))


def _slots(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of each module under one name, tied ones under each."""
    return {
        f"{path}.{key}" if path else key: tensor
        for path, each in module.named_modules()
        for key, tensor in [*each._parameters.items(), *each._buffers.items()]
        if tensor is not None
    }


def _attributes(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that modules hold beside parameters and buffers."""
    for each in module.modules():
        for value in vars(each).values():
            listed = value.values() if isinstance(value, dict) else value
            if isinstance(value, Tensor):
                yield value
            elif isinstance(listed, list | tuple | type({}.values())):
                yield from (x for x in listed if isinstance(x, Tensor))


def owner(node: Node) -> str:
    """Return the name of the module that ran the operation; empty for the traced one itself."""
    stack = node.meta.get(MODULE) or ("",)
    return str(stack[-1])


@contextmanager
def _named(module: nn.Module) -> Iterator[None]:
    """Note at each operation the name of the innermost module that runs it."""
    stack: list[str] = []
    meta = torch.fx.traceback.current_meta

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(name)
            meta[MODULE] = tuple(stack)

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        meta[MODULE] = tuple(stack)

    before = dict(meta)
    with ExitStack() as opened:
        opened.enter_context(torch.fx.traceback.preserve_node_meta())
        opened.callback(meta.update, before)
        opened.callback(meta.clear)
        for name, child in module.named_modules():
            if not isinstance(child, torch.jit.ScriptModule):
                opened.callback(child.register_forward_pre_hook(enter(name)).remove)
                opened.callback(child.register_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging that a forward pass cannot be traced: the caller says it."""
    log = logging.getLogger("torch")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
