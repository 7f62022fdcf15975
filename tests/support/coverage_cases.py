"""What a person says of a model's parameters, compared with what SNCallback enforces of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate

from torch import nn

from snc_client import SNCallback


@dataclass(frozen=True)
class Written:
    """Patterns over parameter names, written by hand from the model's forward.

    ``maps`` are multiplied with something, ``others`` are not. ``x{q,k}{0,1}`` stands for a weight
    x that holds q and k with two matrices each.
    """

    maps: str
    others: str = ""

    def expected(self, model: nn.Module) -> set[str]:
        """Return the names of all matrices; fail unless each parameter is spoken of once."""
        matrices = {n: p for n, p in _weights(model).items() if p.ndim > 1}
        spoken: dict[str, list[str]] = {name: [] for name in matrices}
        names: set[str] = set()
        for pattern in self.maps.split():
            stem, *groups = pattern.replace("}", "").split("{")
            parts = [[f"[{part}]" for part in group.split(",")] for group in groups]
            for name in _matching(stem, matrices):
                spoken[name].append(pattern)
                names |= {name + "".join(suffix) for suffix in itertools.product(*parts)}
        for pattern in self.others.split():
            for name in _matching(pattern, matrices):
                spoken[name].append(pattern)
        vectors = {n for n, p in matrices.items() if p.numel() == max(p.shape)}
        twice = {n: said for n, said in spoken.items() if len(said) > 1}
        forgotten = {n for n, said in spoken.items() if not said} - vectors
        assert not twice, f"these are spoken of twice: {twice}"
        assert not forgotten, f"these are not spoken of: {forgotten}"
        return names


def enforced(model: nn.Module) -> set[str]:
    """Return the layers that a bare threshold holds: those that have one after a measurement."""
    with SNCallback(model, threshold="3x init") as callback:
        callback.step()
    return {name for name, got in callback.latest.items() if got["threshold"] is not None}


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by the names that layers have: a parametrized weight by its own."""
    return {
        re.sub(r"parametrizations\.(\w+)\.original1$", r"\1", name): parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(".original0")
    }


def _matching(pattern: str, names: dict[str, nn.Parameter]) -> Iterator[str]:
    found = [name for name in names if re.match(translate(pattern), name)]
    assert found, f"{pattern} matches none of {list(names)}"
    yield from found
