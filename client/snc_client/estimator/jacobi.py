"""Eigenvectors of many small symmetric matrices without LAPACK: a fixed number of Jacobi sweeps.

`torch.linalg.eigh` waits for the host on CUDA and cannot be captured in a graph. This can: it uses
tensor operations only, the same ones every time. The tests compare it with `eigh` on the CPU; it
has not been run on a GPU. A b of 16 takes 75 rounds of about 25 small launches, so it is for
devices without Triton: `kernels` does the same in one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# For b = 16 from a random start, 4 leave off-diagonals of 1e-3 (lambda_max right to 1e-7) and 5 of
# 1e-7; from a warm start 2 do.
SWEEPS = 5


def eigh(g_KBB: Tensor, *, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (ascending) and eigenvectors (columns) of symmetric g_KBB, as eigh does.

    Entries must be finite. Parallel two-sided Jacobi (Golub & Van Loan, Matrix Computations, 8.5):
    index i of the first half is paired with i of the second, all pairs are rotated at once so that
    their entries g[p, q] vanish, then the indexes move on one seat; after b - 1 rounds, one sweep,
    every pair was rotated once and every index is back at its first seat.
    """
    b = g_KBB.shape[-1]
    odd = b % 2  # an empty seat: a zero row and column, which no rotation touches
    g = pad(g_KBB, (0, odd, 0, odd))
    z = torch.eye(b + odd, dtype=g.dtype, device=g.device).expand_as(g)
    for _ in range(sweeps * (b + odd - 1)):
        c, s = _angles(g)
        g = _turn(_turn(g, c, s).mT, c, s)  # symmetric: columns, then rows
        z = _turn(z, c, s)
        g = _seat(_seat(g).mT)
        z = _seat(z)
    return ascending(g.diagonal(dim1=-2, dim2=-1)[..., :b], z[..., :b, :b])


def ascending(values_KB: Tensor, z_KBB: Tensor) -> tuple[Tensor, Tensor]:
    """Sort eigenvalues, and the columns that belong to them."""
    values, order = torch.sort(values_KB, dim=-1)
    return values, z_KBB.gather(-1, order.unsqueeze(-2).expand_as(z_KBB))


def _angles(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, one per pair, of the smaller rotation that zeroes g[p, q]."""
    half = g.shape[-1] // 2
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    gap = diagonal[..., half:] - diagonal[..., :half]
    twice = 2 * g[..., :half, half:].diagonal(dim1=-2, dim2=-1)
    size = gap.abs() + torch.hypot(gap, twice)  # hypot: squares may not fit
    t = torch.where(size > 0, twice / size, 0.0)
    t = torch.where(gap < 0, -t, t)
    c = torch.rsqrt(1 + t * t)
    return c.unsqueeze(-2), (t * c).unsqueeze(-2)


def _turn(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """Rotate the columns of each pair."""
    p, q = x.chunk(2, dim=-1)
    return torch.cat([c * p - s * q, s * p + c * q], dim=-1)


def _seat(x: Tensor) -> Tensor:
    """Move the columns on by one seat of the round-robin; the first stays."""
    half = x.shape[-1] // 2
    if half == 1:
        return x
    first, stay, last = x[..., :1], x[..., 1 : half - 1], x[..., half - 1 : half]
    return torch.cat([first, x[..., half : half + 1], stay, x[..., half + 1 :], last], dim=-1)
