"""Flow: from bounds of operations to the bound of a graph, and of what lies between refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from torch.fx import Node

from snc_client.lipschitz.chains import Chain, chains
from snc_client.lipschitz.graph import Graph, Refusal, dtype, is_random, operation
from snc_client.lipschitz.lmi import chain_bound
from snc_client.lipschitz.result import LipschitzBound, Refused, SubNetwork, Used
from snc_client.lipschitz.rounding import plus, root_sum, times
from snc_client.lipschitz.rules import APART, FIRST_ONLY, RULES, Call
from snc_client.lipschitz.trace import owner

INPUT, OUTPUT = "input", "output"
_KNOWN: Final = {
    "native_layer_norm": "divides by a deviation that depends on the input",
    "native_group_norm": "divides by a deviation that depends on the input",
    "_fused_rms_norm": "divides by a deviation that depends on the input",
    "rsqrt": "divides by a deviation that depends on the input",
    "pow": "a power: its slope has no limit",
    "embedding": "looks rows up by integers",
}


class Flow:
    """The bounds of each value of a graph, in each of the sources that it depends on.

    A source is an input, or the result of an operation without a bound: there a sub-network ends
    and the next one begins.
    """

    def __init__(self, graph: Graph, module: nn.Module) -> None:
        self._graph, self._module = graph, module
        self._factors: dict[Node, Mapping[Node, float]] = {}
        self._refused: dict[Node, Refused] = {}
        for node in graph.nodes:
            if graph.moving(node) and node not in graph.inputs:
                try:
                    self._factors[node] = self._factors_of(node)
                except Refusal as error:
                    self._refuse(node, str(error))
                except (LookupError, TypeError, ValueError, RuntimeError) as error:
                    self._refuse(node, f"its arguments are not as its rule expects, {error!r}")
        self._chains: dict[Node, tuple[Chain, float]] = {}
        for end, chain in chains(graph).items():
            self._chains[end] = chain, chain_bound(chain.weights, chain.slopes)

    def result(self) -> LipschitzBound:
        """Return the bound of the graph."""
        plain, found = self._bounds({}), self._bounds(self._chains)
        refused = list(dict.fromkeys(self._refused.values()))
        return LipschitzBound(
            bound=self._whole(found),
            product=self._whole(plain),
            how="traced",
            used=tuple(self._used(plain)),
            refused=tuple(refused),
            parts=tuple(self._parts(found)) if refused else (),
        )

    def _factors_of(self, node: Node) -> Mapping[Node, float]:
        graph = self._graph
        if graph.overwritten(node):
            raise Refusal("its memory is written later, in place")
        if is_random(node):
            raise Refusal("random numbers: another function at each pass")
        moving = {each for each in node.all_input_nodes if graph.moving(each)}
        known = dtype(node)
        for each in moving:
            if not (known is None or dtype(each) is None or dtype(each) == known):
                raise Refusal(f"changes the dtype from {dtype(each)} to {known}")
            if (of := dtype(each)) is not None and not of.is_floating_point:
                raise Refusal(f"values of {of}: only real numbers have a bound")
        if operation(node) == "getitem":
            return self._item(node, moving)
        rule = RULES.get(node.target)
        if node.op != "call_function" or rule is None:
            raise Refusal(_KNOWN.get(operation(node), "no bound of it is known"))
        return rule(Call(graph, node, graph.arguments(node), moving))

    def _item(self, node: Node, moving: set[Node]) -> Mapping[Node, float]:
        (source,) = node.all_input_nodes
        if source.target in FIRST_ONLY and node.args[1] != 0:
            raise Refusal("indices or statistics, which leap")
        return dict.fromkeys(moving, 1.0)

    def _refuse(self, node: Node, reason: str) -> None:
        where = owner(node)
        kind = type(self._module.get_submodule(where)).__name__ if where else ""
        what = f"{operation(node)} of {kind}" if kind else operation(node)
        # One line for a module: what follows in it is a consequence, or of the same kind.
        known = next((x for x in self._refused.values() if where and x.module == where), None)
        self._refused[node] = known or Refused(where, what, reason)

    def _bounds(self, found: Mapping[Node, tuple[Chain, float]]) -> dict[Node, dict[Node, float]]:
        """Return value -> source -> Lipschitz constant of the value in the source."""
        bounds: dict[Node, dict[Node, float]] = {}
        for node in self._graph.nodes:
            if node in self._graph.inputs or node in self._refused:
                bounds[node] = {node: 1.0}
                continue
            through: dict[Node, list[float]] = {}
            for argument, factor in self._factors.get(node, {}).items():
                for source, bound in bounds[argument].items():
                    through.setdefault(source, []).append(times(factor, bound))
            join = root_sum if node.target in APART else plus
            bounds[node] = {source: join(terms) for source, terms in through.items()}
            if node in found:
                chain, bound = found[node]
                for source, before in bounds[chain.source].items():
                    other = times(bound, before)
                    bounds[node][source] = min(bounds[node][source], other)
        return bounds

    def _whole(self, bounds: Mapping[Node, Mapping[Node, float]]) -> float:
        """Return the constant of all outputs together in all inputs together."""
        terms = []
        for output in self._graph.outputs:
            for source, bound in bounds[output].items():
                terms.append(bound if source in self._graph.inputs else float("inf"))
        return root_sum(terms)

    def _used(self, bounds: Mapping[Node, Mapping[Node, float]]) -> list[Used]:
        used = [
            Used(owner(node), operation(node), max(factors.values()))
            for node, factors in self._factors.items()
            if factors and max(factors.values()) != 1.0
        ]
        for chain, bound in self._chains.values():
            first, last = chain.layers[0], chain.layers[-1]
            name = f"{owner(first)} to {owner(last)}"
            used.append(Used(name, f"{len(chain.layers)} dense layers together", bound))
        return used

    def _parts(self, bounds: Mapping[Node, Mapping[Node, float]]) -> list[SubNetwork]:
        """Return a bound between each two ends, together over all values that enter the second."""
        terms: dict[tuple[str, str], list[float]] = {}
        ends: list[tuple[str, Any]] = [
            (self._name(node), each) for node in self._refused for each in node.all_input_nodes
        ]
        ends += [(OUTPUT, output) for output in self._graph.outputs]
        for end, value in dict.fromkeys(ends):
            for source, bound in bounds.get(value, {}).items():
                start = self._name(source)
                if start != end:
                    terms.setdefault((start, end), []).append(bound)
        found = [SubNetwork(*ends, root_sum(each)) for ends, each in terms.items()]
        return [part for part in found if part.bound != 1.0]

    def _name(self, node: Node) -> str:
        if node in self._graph.inputs:
            place = self._graph.inputs.index(node)
            return INPUT if len(self._graph.inputs) == 1 else f"{INPUT} {place}"
        return self._refused[node].module or self._refused[node].operation
