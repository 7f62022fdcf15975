"""The largest eigenvalue of a positive semidefinite matrix, from below, by the Lanczos method."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 48  # products between two restarts
MOST_RESTARTS = 16
# The error of an eigenvalue is at most the residual, and about its square over the gap.
CLOSE = 1e-6


def largest_eigenvalue(g_NN: Tensor) -> Tensor:
    """Return v'Gv for a unit vector v close to the first eigenvector of G: 0-d, in G's dtype.

    At most the largest eigenvalue, up to the rounding of one product, and less than 1e-6 of it
    below where the residual gets that small, which 768 products reach unless many eigenvalues lie
    within 1e-6. G (float64) must be finite, with entries near one. Cost: one read of G for each of
    50 to 800 products. It waits for the device. The first vector is random and always the same.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(g_NN), generator=generator, dtype=torch.float64).to(g_NN)
    v = v / torch.linalg.vector_norm(v)
    value = torch.zeros((), dtype=g_NN.dtype, device=g_NN.device)
    for _ in range(MOST_RESTARTS):
        v = _best_of_krylov(g_NN, v)
        image = g_NN @ v
        value = v @ image
        if torch.linalg.vector_norm(image - value * v) <= CLOSE * value:
            break
    return value


def _best_of_krylov(g_NN: Tensor, v_N: Tensor) -> Tensor:
    """Return the unit vector of the span of v, Gv, G^2 v, ... with the largest v'Gv."""
    steps = min(STEPS, len(v_N))
    basis_KN, images_KN = v_N.new_zeros(steps, len(v_N)), v_N.new_zeros(steps, len(v_N))
    basis_KN[0] = v_N
    for k in range(steps):
        images_KN[k] = g_NN @ basis_KN[k]
        new = images_KN[k]
        for _ in range(2):  # once leaves what rounding put back
            new = new - (basis_KN[: k + 1] @ new) @ basis_KN[: k + 1]
        length = torch.linalg.vector_norm(new)
        # Nothing is left but rounding: the span holds an eigenvector already.
        if k + 1 == steps or length <= 1e-12 * torch.linalg.vector_norm(images_KN[k]):
            break
        basis_KN[k + 1] = new / length
    used = slice(k + 1)
    small = basis_KN[used] @ images_KN[used].mT
    best = torch.linalg.eigh((small + small.mT) / 2).eigenvectors[:, -1] @ basis_KN[used]
    unit: Tensor = best / torch.linalg.vector_norm(best)
    return unit
