"""Chains: dense layers in the graph with only entrywise functions between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.fx import Node

from snc_client.lipschitz.graph import Graph, Refusal, dtype, shape
from snc_client.lipschitz.lmi import fits
from snc_client.lipschitz.rules.activations import SLOPES, Slopes
from snc_client.lipschitz.rules.rule import finite, operations

_FLATTENED: Final = frozenset(operations("view", "view_copy", "_unsafe_view", "reshape", "clone"))
_DENSE: Final = frozenset(operations("mm", "addmm"))


@dataclass(frozen=True)
class Chain:
    """Dense layers that follow each other from ``source`` on, and the functions in between."""

    source: Node
    layers: tuple[Node, ...] = ()
    weights: tuple[Tensor, ...] = ()
    slopes: tuple[Slopes, ...] = ()

    def then(self, source: Node, layer: Node, weight: Tensor, *slopes: Slopes) -> Chain:
        """Return the chain with one more layer in front of it."""
        return Chain(
            source, (layer, *self.layers), (weight, *self.weights), (*slopes, *self.slopes)
        )


def chains(graph: Graph) -> dict[Node, Chain]:
    """Return the longest chains whose inequality is small enough, by the layer that ends each."""
    found: dict[Node, Chain] = {}
    inside: set[Node] = set()
    # A write in place may lie between two nodes, where no edge of the graph shows it.
    for node in [] if graph.written else reversed(graph.nodes):
        if node.target in _DENSE and node not in inside:
            chain = _chain_to(graph, node)
            if len(chain.layers) > 1:
                found[node] = chain
                inside.update(chain.layers[1:])
    return found


def _chain_to(graph: Graph, node: Node) -> Chain:
    chain, layer, slopes = Chain(node), node, list[Slopes]()
    while (link := _link(graph, layer)) is not None:
        longer = chain.then(link[0], layer, link[1], *slopes)
        if len(longer.layers) > 1 and not fits(longer.weights):
            break
        chain, function = longer, _same_rows(link[0])
        if function.target not in SLOPES or not isinstance(function.args[0], Node):
            break
        try:
            slopes = [SLOPES[function.target](graph.arguments(function))]
        except Refusal:
            break
        layer = _same_rows(function.args[0])
    return chain


def _link(graph: Graph, node: Node) -> tuple[Node, Tensor] | None:
    """Return the input and the weight W of a dense layer W x + b on rows; None for another node."""
    if node.target not in _DENSE:
        return None
    args = graph.arguments(node)
    source = args.get("mat1", args["self"])
    fixed = (args["mat2"], args["self"]) if "mat1" in args else (args["mat2"],)
    if not graph.moving(source) or any(map(graph.moving, fixed)) or dtype(source) != dtype(node):
        return None
    try:
        weight = graph.tensor(args["mat2"]).mT
        scale = finite(args.get("alpha", 1))
    except Refusal:
        return None
    return (source, weight) if scale == 1 and bool(weight.isfinite().all()) else None


def _same_rows(node: Node) -> Node:
    """Follow reshapes that keep the last dimension: the rows stay what they are."""
    while node.target in _FLATTENED and isinstance(node.args[0], Node):
        before = node.args[0]
        if not shape(node) or not shape(before) or shape(node)[-1] != shape(before)[-1]:
            break
        node = before
    return node
