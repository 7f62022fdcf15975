"""A bound of dense layers that follow each other, tighter than the product of their norms.

For W_l f(... f(W_0 x)) with entrywise f of slopes in [a, b], LipSDP (Fazlyab et al., arXiv
1906.04893) has a bound sqrt(rho) for each choice of multipliers t >= 0, one per hidden unit, for
which a matrix M(rho, t) is positive semidefinite. A descent finds good multipliers. What it finds
need not be the best ones: a shifted Cholesky factorization proves M >= 0 for them, as in
`snc_client.certificate`, and only then is the bound used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from snc_client.lipschitz.rounding import root, times
from snc_client.lipschitz.rules.activations import Slopes

LARGEST = 2600  # rows of M: its factorization takes a second on one core
WORK = 4e10  # multiply-adds of a descent, about ten seconds on one core
FEWEST, MOST = 30, 100  # iterations
RATE = 0.2
RUNGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of rho above the value that the descent has reached
SHARPEST = 300.0  # of the smooth maximum of the eigenvalues
UNIT = 2.0**-53


def fits(weights: Sequence[Tensor]) -> bool:
    """Return whether the inequality of these layers is small enough to be solved."""
    return _rows(weights) <= LARGEST and WORK / _work(weights) >= FEWEST


def chain_bound(weights: Sequence[Tensor], slopes: Sequence[Slopes]) -> float:
    """Return a certified bound of the chain, +inf where none was proven.

    ``weights`` are two or more, [d1, d0], [d2, d1], ..., finite float64 on the CPU. ``slopes`` are
    those of the functions in between.
    """
    scales = [_power_of_two(w) for w in weights]
    scaled = [w * 2.0**-e for w, e in zip(weights, scales, strict=True)]  # exact
    slopes = [(min(low, 0.0), high) for low, high in slopes]  # a wider interval is sound
    if any(not bool(w.any()) for w in scaled):
        return 0.0
    with torch.enable_grad():
        found = _descended(scaled, slopes)
    if found is None:
        return math.inf
    multipliers, rho = found
    for eta in RUNGS:
        if _proven(scaled, slopes, multipliers, rho * (1 + eta)):
            return times(root(rho * (1 + eta)), math.ldexp(1.0, sum(scales)))
    return math.inf


def _power_of_two(weight: Tensor) -> int:
    size = float(torch.linalg.vector_norm(weight))
    return math.frexp(size)[1] if math.isfinite(size) and size else 0


def _rows(weights: Sequence[Tensor]) -> int:
    return sum(w.shape[1] for w in weights)


def _work(weights: Sequence[Tensor]) -> float:
    return 12.0 * sum(w.shape[0] * w.shape[1] * min(w.shape) + w.shape[1] ** 3 for w in weights[1:])


def _descended(
    weights: Sequence[Tensor], slopes: Sequence[Slopes]
) -> tuple[list[Tensor], float] | None:
    """Return multipliers and the least rho for them, as far as float64 can tell."""
    logs = [torch.full((w.shape[1],), math.log(t), dtype=torch.float64, requires_grad=True)
            for w, t in zip(weights[1:], _first(weights, slopes), strict=True)]  # fmt: skip
    optimizer = torch.optim.Adam(logs, lr=RATE, betas=(0.9, 0.95))
    steps = int(min(MOST, max(FEWEST, WORK / _work(weights))))
    best: tuple[list[Tensor], float] | None = None
    for step in range(steps):
        spectrum = _spectrum(weights, slopes, [x.exp() for x in logs])
        if spectrum is None:
            if best is None:
                return None
            with torch.no_grad():  # outside of what is feasible: from the best again, slower
                for x, kept in zip(logs, best[0], strict=True):
                    x.copy_(kept.log())
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            optimizer.state.clear()
            continue
        rho = float(spectrum.detach().amax())
        if best is None or rho < best[1]:
            best = [x.detach().exp() for x in logs], rho
        sharp = SHARPEST ** ((step + 1) / steps) * 3
        loss = (sharp * spectrum / rho).logsumexp(0) / sharp + math.log(rho)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.02 ** (1 / steps)
        optimizer.step()
    return best


def _first(weights: Sequence[Tensor], slopes: Sequence[Slopes]) -> list[float]:
    """Return one multiplier per layer for which the bound is about the product of the norms."""
    norms = [float(torch.linalg.matrix_norm(w, ord=2)) ** 2 * (1 + 1e-6) for w in weights]
    needed, found = norms[-1], [norms[-1]]
    for squared, (low, high) in zip(reversed(norms[1:-1]), reversed(slopes[1:]), strict=True):
        above = found[-1]
        needed = squared * (-2 * low * high * above + (low + high) ** 2 * above**2 / needed)
        found.append(needed)
    return found[::-1]


def _spectrum(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multipliers: Sequence[Tensor]
) -> Tensor | None:
    """Return numbers whose largest is the least rho; None where no rho would do."""
    last = weights[-1]
    block = 2 * torch.diag(multipliers[-1]) - last.mT @ last
    for k in range(len(multipliers) - 1, -1, -1):
        factor, info = torch.linalg.cholesky_ex(block)
        if int(info) != 0:
            return None
        low, high = slopes[k]
        w, t = weights[k], multipliers[k]
        side = (low + high) * t.unsqueeze(1) * w
        half = torch.linalg.solve_triangular(factor, side, upper=False)
        bent = -2 * low * high
        if k == 0:
            if bent:
                half = torch.cat([half, (bent * t).sqrt().unsqueeze(1) * w])
            small = half @ half.mT if half.shape[0] < half.shape[1] else half.mT @ half
            found: Tensor = torch.linalg.eigvalsh(small)
            return found if bool(found.isfinite().all()) else None
        block = 2 * torch.diag(multipliers[k - 1]) - half.mT @ half
        if bent:
            block = block - w.mT @ (bent * t.unsqueeze(1) * w)
    raise AssertionError("a chain has two layers or more")


@torch.no_grad()
def _proven(
    weights: Sequence[Tensor], slopes: Sequence[Slopes], multipliers: Sequence[Tensor], rho: float
) -> bool:
    """Return whether M(rho, t) is proven to be positive semidefinite.

    With the rounding errors of its entries (``error``, entry by entry) and those of the
    factorization: Higham, theorem 10.3, bounds these by gamma times the trace.
    """
    rows = _rows(weights)
    m = torch.zeros(rows, rows, dtype=torch.float64)
    error = torch.zeros_like(m)
    starts = list(accumulate((w.shape[1] for w in weights), initial=0))
    places = [slice(a, b) for a, b in pairwise(starts)]
    m[places[0], places[0]] += torch.eye(weights[0].shape[1], dtype=torch.float64) * rho
    for k, t in enumerate(multipliers):
        (low, high), w, here, above = slopes[k], weights[k], places[k], places[k + 1]
        m[above, above] += 2 * torch.diag(t)
        side = -(low + high) * t.unsqueeze(1) * w
        m[above, here], m[here, above] = side, side.mT
        error[above, here] += 4 * UNIT * side.abs()
        error[here, above] += 4 * UNIT * side.abs().mT
        if low < 0:
            bent = -2 * low * high * t.unsqueeze(1)
            m[here, here] -= w.mT @ (bent * w)
            error[here, here] += _gamma(len(w) + 8) * (w.abs().mT @ (bent * w.abs()))
    last, end = weights[-1], places[-1]
    m[end, end] -= last.mT @ last
    error[end, end] += _gamma(len(last) + 8) * (last.abs().mT @ last.abs())
    error += 4 * UNIT * m.abs()  # of the sums of these parts
    error.diagonal().add_(16 * UNIT * torch.cat([torch.full((starts[1],), rho), *multipliers]))
    halved = torch.frexp(m.diagonal()).exponent.div(2, rounding_mode="floor")
    balance = torch.ldexp(torch.ones(rows, dtype=torch.float64), -halved)
    m, error = (balance.unsqueeze(1) * x * balance for x in (m, error))  # exact: powers of two
    g = _gamma(rows + 2) / (1 - _gamma(rows + 2))
    lost = 1.02 * torch.linalg.vector_norm(error) + (g + 8 * UNIT) * m.diagonal().abs().sum() * 1.02
    m.diagonal().sub_(lost)
    factor, info = torch.linalg.cholesky_ex(m)
    return int(info) == 0 and bool(factor.diagonal().isfinite().all())


def _gamma(k: int) -> float:
    return k * UNIT / (1 - k * UNIT)
