"""The products of a block of vectors with weights, there and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny
LONG = 4096  # rows longer than this are summed in float64
CACHED = 2**18  # numbers in weights that a fast cache still holds at their second product


class Operator(Protocol):
    """A layer's shape and its products with blocks of vectors, always in float32."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): outputs x inputs."""

    def matmul(self, v_NB: Tensor) -> Tensor:
        """W V: float32 (n, b) -> float32 (m, b)."""

    def rmatmul(self, u_MB: Tensor) -> Tensor:
        """W'U: float32 (m, b) -> float32 (n, b)."""


def there_and_back(
    operators: Sequence[Operator], v_KBN: Tensor, *, together: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X = U W, R = U U' and the scales of U = V W' / scale (or of W, where m < n).

    For K layers with one small side N. U has entries up to one, because squares of 1e+-30 do not
    fit float32. Clamping the scale keeps a zero weight at zero, and passes NaN on.

    One large product over stacked weights would copy them, and is 3-6 times slower on a CPU. With
    ``together`` the other steps of weights of equal shape are one call each, where the operators
    have a ``plain`` weight, as `snc_client.operators.Matrix` does.
    """
    plain = [getattr(operator, "plain", None) for operator in operators] if together else []
    weights = [weight for weight in plain if weight is not None]
    if len(weights) == len(operators):
        return _together(weights, v_KBN)
    each = map(_one, operators, v_KBN.unbind())
    x, r, u_scale = (torch.stack(parts) for parts in zip(*each, strict=True))
    return x, r, u_scale


def gram(x_KBN: Tensor) -> Tensor:
    """Return X X' in float32, summed in float64 where rows are long."""
    if x_KBN.shape[-1] > LONG:
        x_KBN = x_KBN.double()
    return (x_KBN @ x_KBN.mT).float()


def largest(x_KBN: Tensor) -> Tensor:
    """Return the largest absolute entry of each block, [K], at least `TINY`; NaN for NaN."""
    # aminmax over dimensions is 20 times as slow.
    return torch.maximum(x_KBN.amax((1, 2)), -x_KBN.amin((1, 2))).clamp_(min=TINY)


def _one(operator: Operator, v_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply by one layer. The second product follows at once: a cache still holds the weight."""
    m, n = operator.shape
    products: list[Callable[[Tensor], Tensor]] = [operator.matmul, operator.rmatmul]
    ahead, back = products if m >= n else reversed(products)
    u_BM = ahead(v_BN.mT).mT
    low, high = torch.aminmax(u_BM)  # abs().amax() copies
    scale = torch.maximum(high, -low).clamp_(min=TINY)
    u_BM.div_(scale)
    return back(u_BM.mT).mT, gram(u_BM), scale


def _together(weights: Sequence[Tensor], v_KBN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply by plain weights; neighbours of equal shape as long as a cache holds them all."""
    x_KBN = torch.empty_like(v_KBN)
    found: list[tuple[Tensor, Tensor]] = []
    v, x, start = v_KBN.unbind(), x_KBN.unbind(), 0
    for shape, same in groupby(weights, key=lambda weight: weight.shape):
        alike = [weight.mT if shape[0] >= shape[1] else weight for weight in same]
        most = max(1, CACHED // shape.numel())
        for run in (alike[i : i + most] for i in range(0, len(alike), most)):
            u_KBM = v_KBN.new_empty(len(run), v_KBN.shape[1], max(shape))
            for k, (weight, u_BM) in enumerate(zip(run, u_KBM.unbind(), strict=True), start):
                torch.mm(v[k], weight, out=u_BM)
            scale = largest(u_KBM)
            u_KBM.div_(scale[:, None, None])
            for k, (weight, u_BM) in enumerate(zip(run, u_KBM.unbind(), strict=True), start):
                torch.mm(u_BM, weight.mT, out=x[k])
            found.append((gram(u_KBM), scale))
            start += len(run)
    r_KBB, u_scale = (torch.cat(part) for part in zip(*found, strict=True))
    return x_KBN, r_KBB, u_scale
