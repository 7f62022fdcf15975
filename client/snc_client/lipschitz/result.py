"""LipschitzBound: the result of `lipschitz_bound`, with what it used and what it refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Used:
    """One factor of a bound: an operation, the module that ran it, and its own bound."""

    module: str
    operation: str
    bound: float


@dataclass(frozen=True)
class Refused:
    """An operation without a bound, the module that ran it, and why."""

    module: str
    operation: str
    reason: str


@dataclass(frozen=True)
class SubNetwork:
    """A sub-network between two refused operations, the input or the output, and its bound."""

    start: str
    end: str
    bound: float


@dataclass(frozen=True)
class LipschitzBound:
    """||f(x) - f(y)|| <= ``bound`` * ||x - y|| for all x and y of the example's shape.

    Norms are Euclidean, over all entries of the tensors. ``bound`` is infinite where an operation
    on the way from the input to the output was ``refused``; then ``parts`` has the bounds of the
    sub-networks in between. f is the function of real numbers that the module computes with its
    stored weights, in the mode in which it was: rounding of the forward pass is not part of it.
    """

    bound: float
    product: float
    """The bound without the matrix inequalities of dense layers that follow each other."""
    how: Literal["traced", "sequential", "modules"]
    """The whole graph; the children of a Sequential, one by one; modules that could be traced."""
    used: tuple[Used, ...]
    refused: tuple[Refused, ...]
    parts: tuple[SubNetwork, ...]

    @property
    def certified(self) -> bool:
        """Return whether there is a bound of the whole module."""
        return math.isfinite(self.bound)

    def __str__(self) -> str:
        lines = [f"Lipschitz bound {self.bound:.6g} ({self.how})"]
        lines += [f"  {x.module or '-'}: {x.operation} {x.bound:.6g}" for x in self.used]
        lines += [f"  refused {x.module or '-'}: {x.operation}, {x.reason}" for x in self.refused]
        lines += [f"  from {x.start} to {x.end}: {x.bound:.6g}" for x in self.parts]
        return "\n".join(lines)

    def certified_radius(self, logits: Tensor) -> Tensor:
        """Return how far each input may move before its class changes, float64 [...], rounded down.

        ``logits`` [..., classes] are the module's outputs: the radius is (largest - second) /
        (sqrt(2) * bound), because the difference of two outputs has sqrt(2) times the constant. 0
        where a logit is not finite or there is no bound. Their own rounding is not covered. Raises
        ValueError for fewer than two classes, and for logits that are no real numbers.
        """
        if logits.ndim < 1 or logits.shape[-1] < 2 or not logits.is_floating_point():
            raise ValueError(
                "logits must be real numbers [..., classes] of two classes or more, got "
                f"{logits.dtype} {tuple(logits.shape)}"
            )
        wide = logits.detach().double()
        first, second = wide.topk(2, dim=-1).values.unbind(-1)
        finite = wide.isfinite().all(-1) & math.isfinite(self.bound)
        radius = (first - second) / (math.sqrt(2) * self.bound or math.ulp(0.0))
        return torch.where(finite, radius * (1 - 2.0**-50), 0.0)
