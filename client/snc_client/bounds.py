"""A certified upper bound of the spectral norm of any operator of a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snc_client.certificate import carry, largest_upper, rounded_up, sigma_upper
from snc_client.convolution_bounds.absolute_values import absolute_bound
from snc_client.convolution_bounds.torus import on_torus, padding_norm
from snc_client.operators import (
    Adjoint,
    BlockDiagonal,
    Convolution,
    Gain,
    LowRank,
    Matrix,
    Operator,
    Rows,
)
from snc_client.precision import in_float64

COLD_ITERATIONS = 32  # of a power iteration from random vectors, on the matrices of a convolution


def certifiable(operator: Operator) -> bool:
    """Return whether `bound` certifies this kind of operator; `last_bound` certifies every kind."""
    return isinstance(operator, Matrix | BlockDiagonal | LowRank | Gain | Rows)


def bound(operator: Operator, sigma: Tensor) -> Tensor:
    """Return a certified bound of the operator, 0-d float32; NaN for one that is not `certifiable`.

    ``sigma`` (0-d) is an estimate from below: the bounds that are tried lie just above it. Costs
    one Gram matrix and a Cholesky factorization of it for each bound that is tried.
    """
    if isinstance(operator, Matrix):
        return sigma_upper(operator.weight, sigma)
    if isinstance(operator, BlockDiagonal):
        # Blocks share no input and no output: the largest bound of a block bounds them all.
        if operator.weight.device.type == "cpu":
            return largest_upper(operator.weight, sigma)
        # Some CUDA libraries make the host wait when they factor a batch of matrices.
        return torch.stack([sigma_upper(x, sigma) for x in operator.weight.unbind()]).amax()
    if isinstance(operator, LowRank):
        matrix, error = operator.small()
        return carry(sigma_upper(matrix, sigma), drift=error.float())
    if isinstance(operator, Gain | Rows):
        return operator.upper()
    return torch.full_like(sigma, math.nan)


def any_bound(operator: Operator, sigma: Tensor) -> Tensor:
    """Return the bound of any operator: `bound`, or `convolution_bound` of a convolution."""
    if isinstance(operator, Convolution | Adjoint):
        return convolution_bound(operator)
    return bound(operator, sigma)


def last_bound(operator: Operator, sigma: Tensor) -> Tensor:
    """Return `any_bound`; where that takes too long, a bound from the Frobenius norm. Never NaN."""
    found = any_bound(operator, sigma)
    if not isinstance(operator, Convolution | Adjoint):
        return found
    kernel, shift = in_float64(operator.tensors[0])
    frobenius = torch.linalg.vector_norm(kernel) * 2.0**-shift
    last = rounded_up(frobenius * per_frobenius(operator))
    return torch.where(found.isnan(), torch.where(last.isfinite(), last, math.inf), found)


def per_frobenius(operator: Convolution | Adjoint) -> float:
    """Return a factor: the norm of the map is at most that times the kernel's Frobenius norm.

    Each tap is a matrix applied to shifted inputs, so the norm is at most the sum of the norms of
    the taps, times that of the padding.
    """
    convolution = operator.convolution if isinstance(operator, Adjoint) else operator
    taps = math.prod(convolution.tensors[0].shape[2:])
    return math.sqrt(taps) * padding_norm(convolution) * (1 + 1e-6)


def convolution_bound(operator: Convolution | Adjoint) -> Tensor:
    """Return a certified bound of a convolution as a linear map on images, 0-d float32.

    The smaller of two (`snc_client.convolution_bounds`): on a torus, which is block-diagonal in the
    Fourier basis, and of the absolute values, the better one for kernels without negative entries.
    Some per cent above the norm: too loose to divide a weight by where nobody asks for a proof. NaN
    where both computations would take more than a second.
    """
    convolution = operator.convolution if isinstance(operator, Adjoint) else operator
    found = [_by_torus(convolution), absolute_bound(convolution)]
    known = [rounded_up(x) for x in found if x is not None]
    if not known:
        return torch.full_like(operator.amax(), math.nan)
    upper = torch.stack(known).amin() if len(known) > 1 else known[0]
    return torch.where(upper.isnan(), math.inf, upper)


def _by_torus(convolution: Convolution) -> Tensor | None:
    torus = on_torus(convolution)
    if torus is None:
        return None
    found = largest_upper(torus.matrices, _largest_norm(torus.matrices))
    upper = carry(found * torus.times, drift=torus.error.float() * torus.times)
    return torch.where(upper.isnan(), math.inf, upper)


def _largest_norm(matrices_KMN: Tensor) -> Tensor:
    """Estimate the largest norm of a stack from below, by power iterations on all of them."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(matrices_KMN.shape[2], 4, generator=generator, dtype=torch.float64)
    v = first.to(matrices_KMN.device).expand(len(matrices_KMN), -1, -1)
    for _ in range(COLD_ITERATIONS):
        u = matrices_KMN @ v
        x = matrices_KMN.mT @ u
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        v = torch.where(norm > 0, x / norm, v)
    found: Tensor = torch.linalg.vector_norm(matrices_KMN @ v, dim=1).amax()
    return found
