"""Measure one matrix once, from cold: converged sigma, a certified bound, and the Frobenius norm.

Everything runs on the CPU, after the matrix is scaled near one by a power of two, which is exact: a
file may hold 1e-40 or, in float64, 1e300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.certificate import certify, sigma_upper
from snc_client.estimator import BlockPower
from snc_client.operators import Matrix

# Some singular value lies within residual^2 / 2 of sigma, relative, and on every spectrum tried the
# error to the largest one was below the residual. Float32 leaves a floor of 6e-6.
SETTLED = 1e-4
MOST_ITERATIONS = 256  # a Gaussian takes some 40; sixty values within 2 % are then right to 2e-5
FIRST_RUNG = 1.0011  # a bound above it shows that sigma is low by more than 1e-3
ROUNDING = 2e-6  # sigma may exceed the spectral norm by so much, relative
NEAR_ONE = 60  # entries within 2^+-60 have squares that fit float32, with room for their sum
FAR = 1000  # 2^1000 still multiplies a subnormal float64 without overflow


@dataclass(frozen=True)
class Weighed:
    """The measurement of one matrix. NaN where it has entries that are not finite.

    ``sigma`` is from below, ``sigma_upper`` from above (certified; NaN without ``proof``, inf if
    not finite). ``residual`` = ||W'u - sigma v||; ``settled``: it is below 1e-4 of sigma. If not,
    sigma may be low by up to its distance from sigma_upper.
    """

    sigma: float
    sigma_upper: float
    residual: float
    settled: bool
    frobenius: float
    not_finite: int = 0

    @property
    def stable_rank(self) -> float:
        """Return frobenius^2 / sigma^2; 0 for a zero matrix."""
        return (self.frobenius / self.sigma) ** 2 if self.sigma else 0.0


@torch.no_grad()
def weigh(weight_MN: Tensor, *, threshold: float | None = None, proof: bool = True) -> Weighed:
    """Measure a matrix of any floating-point dtype, both sides at least 1.

    If ``threshold`` lies between sigma and sigma_upper, the threshold itself is tried as a bound:
    if the proof succeeds, sigma_upper is the threshold.

    Cost: some tens of reads in float32, at most 512; with ``proof`` one Gram matrix with a Cholesky
    factorisation in float64. Memory beside the weight: 12 bytes an entry, and three matrices of the
    small side in float64.
    """
    low, high = torch.aminmax(weight_MN)
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        lost = int((~weight_MN.isfinite()).sum())
        upper = math.inf if proof else math.nan
        return Weighed(math.nan, upper, math.nan, True, math.nan, lost)
    if largest == 0:
        return Weighed(0.0, 0.0 if proof else math.nan, 0.0, True, 0.0)
    scaled, unit = _near_one(weight_MN, largest)
    limit = None if threshold is None else threshold / unit
    found = _weigh(scaled, limit, proof)
    up = found.sigma_upper * unit
    return Weighed(
        sigma=found.sigma * unit,
        sigma_upper=up if unit == 1 else math.nextafter(up, math.inf),
        residual=found.residual * unit,
        settled=found.settled,
        frobenius=found.frobenius * unit,
    )


def _near_one(weight: Tensor, largest: float) -> tuple[Tensor, float]:
    """Return the weight divided by a power of two, and this power: 1 unless it is far from one."""
    exponent = max(-FAR, min(FAR, math.frexp(largest)[1]))
    if abs(exponent) > NEAR_ONE:
        return weight.double() * 2.0**-exponent, 2.0**exponent
    return weight if weight.dtype == torch.float64 else weight.float(), 1.0


def _weigh(w: Tensor, limit: float | None, proof: bool) -> Weighed:
    power = BlockPower([(w.shape[0], w.shape[1])], device=w.device)
    single = w.float()
    sigma, residual, settled = _iterate(power, single)
    upper = float(sigma_upper(w, torch.tensor(sigma, dtype=torch.float64))) if proof else math.nan
    if upper > FIRST_RUNG * sigma:
        power.refill_(torch.ones(1, dtype=torch.bool))
        again, residual, settled = _iterate(power, single)
        sigma = max(sigma, again)
        upper = min(upper, float(sigma_upper(w, torch.tensor(sigma, dtype=torch.float64))))
    if limit is not None and sigma * (1 - ROUNDING) <= limit < upper and certify(w, limit):
        upper = limit
    sigma = min(sigma, upper) if proof else sigma
    frobenius = float(torch.linalg.vector_norm(w, dtype=torch.float64))
    return Weighed(sigma, upper, residual, settled, frobenius)


def _iterate(power: BlockPower, single: Tensor) -> tuple[float, float, bool]:
    """Return sigma, its residual, and whether the residual became small enough to stop."""
    best, residual = 0.0, math.inf
    for _ in range(MOST_ITERATIONS):
        found = power.step_([Matrix(single)])
        sigma, residual = float(found.sigma), float(found.residual)
        best = max(best, sigma)
        if residual <= SETTLED * sigma:
            return best, residual, True
    return best, residual, False
