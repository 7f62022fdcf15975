"""Graph: the arguments, shapes and constants of a traced forward pass."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from snc_client.lipschitz.trace import Trace


class Refusal(Exception):
    """An operation has no bound; the message says why."""


class Graph:
    """The nodes between inputs and outputs, and the values of those that no input reaches."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        every = list(trace.graph.graph.nodes)
        given = [node for node in every if node.op == "placeholder"]
        count = len(given) - len(trace.constants)
        self.inputs = given[:count]
        self._values: dict[Node, Any] = dict(zip(given[count:], trace.constants, strict=True))
        self.outputs = [
            node
            for end in every
            if end.op == "output"
            for node in tree_leaves(end.args)
            if isinstance(node, Node)
        ]
        needed = _above(self.outputs)
        self.nodes = [node for node in every if node in needed]
        self._written = {
            storage for node in every for each in _written_by(node) for storage in _storages(each)
        }
        self._moving: set[Node] = set()
        for node in every:
            moves = node in self.inputs or is_random(node) or self.overwritten(node)
            if moves or any(each in self._moving for each in node.all_input_nodes):
                self._moving.add(node)

    @property
    def written(self) -> bool:
        """Return whether something writes into memory that torch has not turned into values."""
        return bool(self._written)

    def moving(self, node: object) -> bool:
        """Return whether a value may differ from pass to pass: all others are constants."""
        return node in self._moving

    def overwritten(self, node: Node) -> bool:
        """Return whether something writes into the memory of this node's value."""
        return any(storage in self._written for storage in _storages(node))

    def arguments(self, node: Node) -> Mapping[str, Any]:
        """Return the arguments of an operation by name, defaults included."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = dict(zip((x.name for x in schema), node.args, strict=False))
        defaults = {x.name: x.default_value for x in schema if x.has_default_value()}
        return {**defaults, **given, **node.kwargs}

    def constant(self, node: Node) -> Any:
        """Return the value of a node that no input reaches, computed as the forward pass does.

        Raises `Refusal` where that is not the same at each pass.
        """
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    @torch.no_grad()
    def _computed(self, node: Node) -> Any:
        if node.op == "get_attr":
            value = getattr(self._trace.graph, str(node.target))
            if id(value) not in self._trace.attributes:
                raise Refusal("a constant that the forward pass makes outside of torch")
        elif node.op == "call_function" and callable(node.target):
            if is_random(node):
                raise Refusal("random numbers: another function at each pass")
            args = map_arg(node.args, self.constant)
            value = node.target(*args, **map_arg(dict(node.kwargs), self.constant))
        else:
            raise Refusal(f"a constant of an unknown kind, {node.op}")
        return value

    def tensor(self, node: Node) -> Tensor:
        """Return a constant as a real float64 tensor on the CPU.

        Raises `Refusal` where its numbers do not fit: complex, quantised, sparse, in shards.
        """
        value = self.constant(node)
        if not isinstance(value, Tensor) or type(value.detach()) is not Tensor:
            raise Refusal(f"a constant must be a plain tensor, got {type(value).__name__}")
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise Refusal(f"a constant must be real and dense, got {value.dtype} {value.layout}")
        return value.detach().cpu().double()


def shape(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's value."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(x, int) for x in value.shape):
        raise Refusal("a value without a known shape")
    return tuple(value.shape)


def dtype(node: Node) -> torch.dtype | None:
    """Return the dtype of a node's value; None for a list of tensors."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def operation(node: Node) -> str:
    """Return the name of an operation, such as ``addmm``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.").partition(".")[0]
    return "getitem" if target is operator.getitem else str(target)


def is_random(node: Node) -> bool:
    """Return whether an operation draws random numbers."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _written_by(node: Node) -> list[Node]:
    """Return the arguments that an operation writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    schema = node.target._schema.arguments
    named = [*zip(schema, node.args, strict=False), *((x, node.kwargs.get(x.name)) for x in schema)]
    written = [value for x, value in named if x.alias_info is not None and x.alias_info.is_write]
    return [x for x in tree_leaves(written) if isinstance(x, Node)]


def _storages(node: Node) -> set[int]:
    leaves = tree_leaves(node.meta.get("val"))
    return {x.untyped_storage()._cdata for x in leaves if isinstance(x, Tensor)}


def _above(outputs: list[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
