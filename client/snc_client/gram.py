"""Gram matrices W'W, in float64 or in short float32 sums; a bound of the largest eigenvalue."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRAM_SLACK = 1e-6  # covers the rounding of the last resort, 1e-7 at most, many times over
UNIT = 2.0**-24  # unit roundoff of float32
PANELS, PANEL = 8, 16  # of the lower triangle of a Gram matrix; columns of one, at least
QUICK_PANELS = 4  # where sums are short, the overhead of a panel counts more


def lower_gram(tall_MN: Tensor) -> Tensor:
    """Return the lower triangle of W'W; what lies above it is not defined.

    A CPU computes it in panels, which leaves out almost half of the products. Each entry is one sum
    of M terms all the same. ``tall_MN`` may be a stack.
    """
    n = tall_MN.shape[-1]
    width = -(-n // PANELS)
    if tall_MN.device.type != "cpu" or width < PANEL:
        return tall_MN.mT @ tall_MN
    g = tall_MN.new_zeros(*tall_MN.shape[:-2], n, n)
    for start in range(0, n, width):
        end = min(start + width, n)
        g[..., start:end, :end] = tall_MN[..., start:end].mT @ tall_MN[..., :end]
    return g


def lower_gram_in_pieces(tall_MN: Tensor, rows: int) -> Tensor:
    """Return the lower triangle of W'W of a float32 W as float64, summed in pieces.

    Each piece is a float32 sum of at most ``rows`` terms, in any order; the pieces are added in
    float64. Half to two thirds of the time of float64 products.
    """
    n = tall_MN.shape[1]
    width = -(-n // QUICK_PANELS)
    g = tall_MN.new_zeros(n, n, dtype=torch.float64)
    for piece in torch.split(tall_MN, rows):
        for start in range(0, n, width):
            end = min(start + width, n)
            g[start:end, :end].add_(piece[:, start:end].mT @ piece[:, :end])
    return g


def gram_bound(g_NN: Tensor, *, squarings: int = 7) -> Tensor:
    """Return a bound of sqrt(lambda_max) of a positive semidefinite G: always one, often tight.

    G is squared ``squarings`` times (normalised, norms kept as logarithms), and the largest
    eigenvalue of the result bounded by mu + d * sqrt(n - 1) from its trace and Frobenius norm:
    Wolkowicz & Styan, Linear Algebra Appl. 29 (1980). Exact for rank one and for equal singular
    values; after 7 squarings within 1 %. Cost: n^3 multiply-adds a squaring. In float64 the bound
    covers the rounding of its own steps, up to n = 50,000; the caller adds that of G.
    At any scale of G; 0 for zeros, NaN for a G that is not finite.
    """
    n = g_NN.shape[-1]
    unit = _unit(g_NN)
    h = g_NN / unit
    size = _or_one(torch.linalg.vector_norm(h))
    h, log = h / size, unit.log() + size.log()
    for _ in range(squarings):
        h = h @ h
        size = _or_one(torch.linalg.vector_norm(h))
        h, log = h / size, 2 * log + size.log()
    mean, squares = h.diagonal().sum() / n, h.square().sum()
    # Where all eigenvalues are equal the difference is only the rounding of these sums.
    lost = 4 * gamma(n * n) * squares / n if h.dtype == torch.float64 else 0.0
    spread = ((squares / n - mean.square()).clamp(min=0) + lost).sqrt()
    largest = mean + spread * math.sqrt(n - 1)
    bound: Tensor = ((log + largest.log()) * math.ldexp(0.5, -squarings)).exp()
    return bound * (1 + GRAM_SLACK)


def _unit(g_NN: Tensor) -> Tensor:
    """Return what brings G near one where squares of its entries would leave the range, else 1."""
    peak, limits = g_NN.abs().amax(), torch.finfo(g_NN.dtype)
    ordinary = (peak > limits.tiny**0.25) & (peak < limits.max**0.25)
    return torch.where(ordinary, 1.0, _or_one(peak))


def _or_one(size: Tensor) -> Tensor:
    """Return ``size``, and one for zero, which nothing can be divided by."""
    return torch.where(size == 0, 1.0, size)


def gamma(k: int, unit: float = 2.0**-53) -> float:
    """Return the relative error of a sum of k products, in any order, at most."""
    return k * unit / (1 - k * unit)
