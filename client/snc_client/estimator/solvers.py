"""Solvers of the b x b algebra: LAPACK on a CPU, Triton or plain tensor operations elsewhere.

Triton's kernels have **not yet run on a GPU**, so they are used only with SNC_TRITON=1 in the
environment. They are checked once per device against float64 before they are used: a compiler or a
driver that miscompiles them costs speed, but never makes sigma wrong.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from snc_client.devices import reading_is_free
from snc_client.estimator import jacobi
from snc_client.precision import finite

log = logging.getLogger("snc")

Eigh: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]  # eigenvalues ascending, columns
Factor: TypeAlias = Callable[[Tensor], Tensor]  # L^-1 of C = L L', the identity where there is none

ASKED = "SNC_TRITON"
CHECKED = (2, 5, 8, 16)  # sizes of the check
TOLERANCE = 2e-5  # relative; the kernels err by 2e-6 in the interpreter


class Solvers(NamedTuple):
    """Both solvers of one device; ``one_launch`` if each is a kernel that a graph can hold."""

    eigh: Eigh
    inverse_factor: Factor
    one_launch: bool


def lapack_inverse_factor(c_KBB: Tensor) -> Tensor:
    """Return L^-1 of C = L L'; the identity where C is not positive definite or not finite.

    CUDA reports info = 0 for a NaN matrix (pytorch#64818), so the inverse is checked too.
    """
    eye = torch.eye(c_KBB.shape[-1], dtype=c_KBB.dtype, device=c_KBB.device)
    factor, info = torch.linalg.cholesky_ex(c_KBB, check_errors=False)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    sound = (info == 0) & finite(inverse.sum((1, 2)))
    if reading_is_free(c_KBB.device) and all(sound.tolist()):
        return inverse
    return torch.where(sound[:, None, None], inverse, eye)


LAPACK = Solvers(torch.linalg.eigh, lapack_inverse_factor, one_launch=False)
PLAIN = Solvers(jacobi.eigh, lapack_inverse_factor, one_launch=False)


@cache
def solvers(device: torch.device) -> Solvers:
    """Return the solvers of ``device``. The first call for a GPU compiles, checks, and waits."""
    if device.type == "cpu":
        return LAPACK
    if device.type != "cuda" or os.environ.get(ASKED) != "1" or find_spec("triton") is None:
        return PLAIN
    try:
        from snc_client.estimator import kernels

        found = Solvers(kernels.eigh, kernels.inverse_factor, one_launch=True)
        if agrees(found, device):
            return found
        reason = "they differ from LAPACK"
    except Exception as error:  # a compiler, driver or version may raise anything
        reason = f"{type(error).__name__}: {error}"
    log.warning("snc: Triton kernels are not used on %s, measuring is slower: %s", device, reason)
    return PLAIN


@torch.no_grad()
def agrees(found: Solvers, device: torch.device) -> bool:
    """Return whether solvers match LAPACK in float64, on matrices of several sizes and on NaN."""
    return all(_agrees(found, device, b) for b in CHECKED)


def _agrees(found: Solvers, device: torch.device, b: int) -> bool:
    generator = torch.Generator().manual_seed(b)
    x = torch.randn(3, b, 40, generator=generator, dtype=torch.float64, device="cpu")
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    g = x @ x.mT
    values, z = (t.cpu().double() for t in found.eigh(g.float().to(device)))
    poisoned = torch.cat([g, torch.full_like(g[:1], torch.nan), -g[:1]])
    inverse = found.inverse_factor(poisoned.float().to(device)).cpu().double()
    pairs = (
        (values, torch.linalg.eigvalsh(g)),
        ((z * values.unsqueeze(-2)) @ z.mT, g),
        (inverse, lapack_inverse_factor(poisoned)),
    )
    return all(bool((a - b).abs().amax() <= TOLERANCE * b.abs().amax()) for a, b in pairs)
