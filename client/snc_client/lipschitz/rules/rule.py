"""What a rule is: the bound of one operation as a map of each argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from snc_client.lipschitz.graph import Graph, Refusal, shape
from snc_client.lipschitz.rounding import root

Factors: TypeAlias = dict[Node, float]
"""Argument -> the Lipschitz constant of the operation in it, the other arguments fixed."""
Rule: TypeAlias = Callable[["Call"], Factors]


@dataclass(frozen=True)
class Call:
    """One operation: its arguments by name, and those that an input reaches (``moving``)."""

    graph: Graph
    node: Node
    args: Mapping[str, Any]
    moving: Set[Node]

    def only(self, name: str = "self") -> Node:
        """Return the argument ``name``; `Refusal` where the input reaches another one too."""
        found = self.args[name]
        if not isinstance(found, Node) or self.moving != {found}:
            raise Refusal("an argument beside the first depends on the input")
        return found

    def moves(self, name: str) -> bool:
        """Return whether the input reaches the argument ``name``."""
        found = self.args.get(name)
        return isinstance(found, Node) and found in self.moving

    def repeats(self, x: Node) -> float:
        """Return the norm of the broadcast of ``x`` to the shape of the result."""
        here, there = math.prod(shape(x)), math.prod(shape(self.node))
        return 1.0 if here == there else root(there / max(here, 1))


def finite(value: Any) -> float:
    """Return an argument as a float; `Refusal` where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refusal(f"a factor that is no finite number, {value!r}")
    return float(value)


def operations(*names: str) -> list[Any]:
    """Return the operations of torch with these names; older torch lacks some."""
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        found += [operation] if operation is not None else []
    return found
