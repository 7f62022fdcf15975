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
    product = torch.bmm if x_KBN.ndim == 3 else torch.mm
    return product(x_KBN, x_KBN.mT).float()


def largest(x_KBN: Tensor) -> Tensor:
    """Return the largest absolute entry of each block, [K], at least `TINY`; NaN for NaN."""
    # aminmax over dimensions is 20 times as slow, and two reductions twice.
    return x_KBN.flatten(1).abs().amax(1).clamp_(min=TINY)


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
    grams: list[Tensor] = []
    scales: list[Tensor] = []
    v, x, start = v_KBN.unbind(), x_KBN.unbind(), 0
    for shape, same in groupby(weights, key=lambda weight: weight.shape):
        alike = [weight.mT if shape[0] >= shape[1] else weight for weight in same]
        most = max(1, CACHED // shape.numel())
        u_KBM = v_KBN.new_empty(len(alike), v_KBN.shape[1], max(shape))
        u = u_KBM.unbind()
        for first in range(0, len(alike), most):
            run = range(first, min(first + most, len(alike)))
            for k in run:
                torch.mm(v[start + k], alike[k], out=u[k])
            part = u_KBM[first : run.stop]
            scale = largest(part)
            part.div_(scale.view(-1, 1, 1))
            for k in run:
                torch.mm(u[k], alike[k].mT, out=x[start + k])
            scales.append(scale)
        grams.append(gram(u_KBM))
        start += len(alike)
    return x_KBN, joined(grams), joined(scales)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one tensor, along their first dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
