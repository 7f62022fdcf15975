"""Matrices with known singular values, and the oracle: a float64 SVD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_n = 96
# Singular values that make estimates, bounds or caps err: crowded, gapless, degenerate, steep.
SPECTRA = {
    "all equal": torch.ones(_n),
    "eight equal on top": torch.cat([torch.ones(8), torch.linspace(0.9, 0.0, _n - 8)]),
    "one above a plateau": torch.cat([torch.ones(1), torch.full((_n - 1,), 0.999)]),
    "gap of 1e-5": torch.cat([torch.tensor([1.0, 1 - 1e-5]), torch.linspace(0.8, 0.0, _n - 2)]),
    "rank one": torch.cat([torch.ones(1), torch.zeros(_n - 1)]),
    "rank three": torch.cat([torch.tensor([1.0, 0.9, 0.5]), torch.zeros(_n - 3)]),
    "power law": torch.arange(1, _n + 1).float() ** -0.5,
    "exponential": torch.exp(-torch.arange(_n).float()),
    "Muon-like": torch.linspace(1.2, 0.7, _n),
    "spike": torch.cat([torch.tensor([1.05]), torch.linspace(1.0, 0.0, _n - 1)]),
    "sixty within two percent": torch.cat(
        [torch.linspace(1.0, 0.98, 60), torch.linspace(0.5, 0.0, _n - 60)]
    ),
}


def planted(values: Tensor | Sequence[float], m: int | None = None, *, seed: int = 0) -> Tensor:
    """Return a float64 matrix (m, n), m >= n, with the n given singular values."""
    s = torch.as_tensor(values, dtype=torch.float64)
    n = len(s)
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64, generator=generator)).Q
        for rows in (m or n, n)
    )
    return (u * s) @ v.mT


def gaussian(m: int, n: int, *, seed: int = 0) -> Tensor:
    """Return a float32 matrix of standard normal numbers."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def singular_values(w: Tensor) -> Tensor:
    """Return the singular values of the numbers stored in w, by float64 SVD, largest first."""
    return torch.linalg.svdvals(w.detach().double())


def norm(w: Tensor) -> float:
    """Return the spectral norm of the numbers stored in w."""
    return float(singular_values(w)[0])
