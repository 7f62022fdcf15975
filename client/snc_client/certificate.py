"""Prove that a weight's spectral norm is at most a bound. Pure tensors.

For a bound c, Cholesky of c^2 I - W'W completes exactly if the spectral norm is below c, up to
rounding. A shift covers the rounding, so a pass is a proof, for any estimate, any distance of the
singular values and any order of the sums: Rump, Verification of positive definiteness, BIT 46
(2006) 433-452; Higham, Accuracy and Stability of Numerical Algorithms, chapter 10. It holds for
IEEE float64 and ordinary products (no Strassen, no emulated float64).

Where float64 is slow or missing the same test runs in float32 and is called ``numerical``: a proof
would need a shift of 2-4 % there, so it is evidence and no proof.

A certificate concerns the numbers stored in the weight, at the step where it ran. It bounds neither
a network as a whole nor a convolution whose reshaped kernel is the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snc_client.devices import float64_is_fast
from snc_client.gram import (
    GRAM_SLACK,
    UNIT,
    gamma,
    gram_bound,
    lower_gram,
    lower_gram_in_pieces,
)
from snc_client.lanczos import largest_eigenvalue
from snc_client.precision import (
    SMALLEST_NORMAL,
    flushes,
    full_precision,
    in_float64,
    library_may_round,
)

Arithmetic: TypeAlias = Literal["float64", "float32"]

RUNGS = (1e-3, 1e-2)  # bounds tried, relative to sigma: a block of 16 rarely needs the second
CLOSE_RUNG = 2e-6  # tried first where sigma comes from the Gram matrix itself
NUMERICAL_SHIFT = 2e-6  # in float32 a bound 1e-6 below the norm was never seen to pass
PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}  # several numbers in an entry
LARGEST_FACTOR = 2.0**1000  # keeps the scale of a subnormal float64 weight finite
# Products in float32 are for weights with longer sides than this, and entries in this range.
QUICK_SIDE, QUICK_RANGE = 128, (2.0**-60, 2.0**60)
QUICK_SHARE = 1e-3  # of bound^2 that the rounding of float32 sums may take, half of the first rung
QUICK_ROWS = 32  # terms of a float32 sum, at least
QUICK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HIGHEST: dict[Arithmetic, float] = {"float64": 2.0**400, "float32": 2.0**50}  # of a scaled bound


@dataclass(frozen=True)
class Certificate:
    """The result of `certify`; true where the bound holds.

    ``shift`` is the share of bound^2 given up to rounding: a norm nearer to the bound than half of
    it fails. A failure proves nothing: ``reason`` explains it.
    """

    passed: bool
    bound: float
    shift: float
    arithmetic: Arithmetic
    reason: str

    @property
    def label(self) -> Literal["proven", "numerical", "not proven"]:
        """The strength of the result: a pass is a proof in float64, evidence in float32."""
        if not self.passed:
            return "not proven"
        return "proven" if self.arithmetic == "float64" else "numerical"

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True)
class _Gram:
    """G = (fW)'(fW), the small side, for the power of two f = 2^shift * factor: fW is near one.

    Or of several W at once, [K, n, n], of which the largest norm is bounded. Only the lower
    triangle of G is defined: it is the one that Cholesky reads. ``rows``: terms of each float32 sum
    that G consists of, 0 where all sums are of ``arithmetic``.
    """

    g_NN: Tensor
    factor: Tensor  # 0-d
    squares: Tensor  # 0-d, (largest) squared Frobenius norm of fW: zero only for a zero W
    long: int
    arithmetic: Arithmetic
    shift: int = 0
    rows: int = 0

    @property
    def finite(self) -> Tensor:
        return self.squares.isfinite()


def arithmetic_of(device: torch.device) -> Arithmetic:
    """Return float64 where it runs at a quarter of float32's speed or more, else float32."""
    return "float64" if float64_is_fast(device) else "float32"


@torch.no_grad()
def certify(
    weight: Tensor, bound: float | Tensor, *, arithmetic: Arithmetic | None = None
) -> Certificate:
    """Return whether the spectral norm of ``weight`` (m, n) is at most ``bound``, proven.

    ``arithmetic`` is chosen by device if None (`arithmetic_of`). Cost: min(m, n) * m * n multiply-
    adds, about 50 power iterations, and a float64 copy of the weight. It waits for the device.
    Raises ValueError for a bound below zero or NaN, or a weight that is no matrix of real numbers.
    """
    limit = float(bound)
    if not limit >= 0:
        raise ValueError(f"bound must be a number >= 0, got {limit}")
    _check(weight)
    chosen = _chosen(arithmetic, weight.device)
    if weight.numel() == 0:
        return Certificate(True, limit, 0.0, chosen, "an empty weight has norm 0")
    gram = _gram(weight, chosen)
    if not bool(gram.finite):
        return Certificate(False, limit, 0.0, chosen, "the weight has entries that are not finite")
    if limit == 0 or math.isinf(limit) or float(gram.squares) == 0:
        passed = limit > 0 or float(gram.squares) == 0
        reason = "the weight is finite" if limit else "the weight is zero"
        return Certificate(passed, limit, 0.0, chosen, reason if passed else "the weight is not 0")
    # To pass a lower bound is to pass a higher one, whose square may not fit.
    scaled = (limit * 2.0**gram.shift * gram.factor).clamp(max=HIGHEST[chosen])
    passed = bool(_passes(gram, scaled))
    shift = float(_shift(gram, scaled.square()) / scaled.square())
    reason = "c^2 I - W'W - shift is positive definite" if passed else "Cholesky did not complete"
    return Certificate(passed, limit, shift, chosen, reason)


@torch.no_grad()
def sigma_upper(
    weight_MN: Tensor, sigma: Tensor, *, arithmetic: Arithmetic | None = None
) -> Tensor:
    """Return a certified bound of the spectral norm: 0-d float32, rounded up, on the device.

    Tries sigma * (1 + 1e-3), then sigma * (1 + 1e-2); if neither passes, the bound is that of
    `gram_bound`, which always holds. So a result above 1.011 * sigma shows that sigma was wrong:
    the block has lost the top direction (`BlockPower.refill_`). ``sigma`` (0-d, from below) affects
    how tight the bound is, never whether it holds. +inf if the weight is not finite, 0 for zero.

    Cost as `certify`. On a GPU all rungs run and are selected on the device: the host never waits.
    """
    _check(weight_MN)
    return largest_upper(weight_MN, sigma, arithmetic=arithmetic)


@torch.no_grad()
def largest_upper(
    weight_MN: Tensor, sigma: Tensor, *, arithmetic: Arithmetic | None = None
) -> Tensor:
    """Bound the largest norm in a stack [K, m, n], or that of one matrix, as `sigma_upper` does.

    All matrices are factored together; ``sigma`` is of the largest.
    """
    if weight_MN.numel() == 0:
        return torch.zeros((), device=weight_MN.device)
    chosen = _chosen(arithmetic, weight_MN.device)
    if chosen == "float64" and (quick := _quick_upper(weight_MN, sigma)) is not None:
        return quick
    gram = _gram(weight_MN, chosen)
    return _upper(gram, _scaled(gram, sigma), RUNGS)


@torch.no_grad()
def upper_of_gram(g_NN: Tensor, long: int, sigma: Tensor) -> Tensor:
    """Bound the norm of W as `sigma_upper` does, from G = W'W in float64, ``long`` = rows of W.

    The sums that G is made of may have been taken in any order, and over several processes. For
    float32 and narrower entries nothing of it leaves the range of float64.
    """
    one = torch.ones((), dtype=torch.float64, device=g_NN.device)
    gram = _Gram(g_NN, one, g_NN.diagonal().sum(), long, "float64")
    return _upper(gram, _scaled(gram, sigma), RUNGS)


@torch.no_grad()
def norm_and_upper(weight_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectral norm from below, 0-d float64, and a certified bound, 0-d float32.

    Both from one Gram matrix in float64, within 1e-6 of each other as a rule. NaN and inf for a
    weight that is not finite. Cost as `certify`, and some tens of reads of the Gram matrix. It
    waits for the device.
    """
    _check(weight_MN)
    gram = _gram(weight_MN, "float64")
    if not bool(gram.finite):
        return torch.full_like(gram.squares, math.nan), _upper(gram, gram.squares, RUNGS)
    lower = gram.g_NN.tril()
    norm = largest_eigenvalue(lower + lower.tril(-1).mT).sqrt()
    return norm / gram.factor * 2.0**-gram.shift, _upper(gram, norm, (CLOSE_RUNG, *RUNGS))


def _scaled(gram: _Gram, sigma: Tensor) -> Tensor:
    """Return sigma in the units of a Gram matrix."""
    return sigma.to(gram.factor.dtype).abs() * 2.0**gram.shift * gram.factor


def _upper(gram: _Gram, scaled: Tensor, rungs: Sequence[float]) -> Tensor:
    """Return the first of the bounds scaled * (1 + rung) that is certified, or the last resort."""
    known = torch.where(gram.finite, torch.where(gram.squares > 0, math.nan, 0.0), math.inf)
    search = _first_passing if gram.g_NN.device.type == "cpu" else _lowest_passing
    found = search(gram, [scaled * (1 + eta) for eta in rungs])
    upper = rounded_up(torch.where(known.isnan(), found / gram.factor * 2.0**-gram.shift, known))
    if flushes():  # a result below this would be written as zero
        upper = torch.where(known.isnan(), upper.clamp(min=SMALLEST_NORMAL), upper)
    return upper


def carry(
    sigma_upper: Tensor,
    *,
    scale: Tensor | float = 1.0,
    drift: Tensor | float = 0.0,
    frobenius: Tensor | float = 0.0,
    rounding: float = 2.0**-24,
) -> Tensor:
    """Carry a bound over a change of the weight: (sigma_upper + drift) * scale, rounded up.

    ``drift`` bounds ||W_t - W_s|| since the bound was certified (Weyl: the Frobenius norm of the
    difference, or lr times the norm of the update). ``frobenius`` is ||W||_F before the scaling by
    ``scale``, and ``rounding`` the unit roundoff of the stored weight (bfloat16: 2^-8), so that the
    bound covers the rounded product; underflow is not covered. Any shape, float32.
    """
    scale = torch.as_tensor(scale, dtype=torch.float32, device=sigma_upper.device)
    rounded = torch.where(scale == 1, 0.0, rounding * scale * frobenius)
    carried = ((sigma_upper + drift) * scale + rounded) * (1 + 2.0**-21)  # 8 float32 roundings
    return carried.clamp(min=SMALLEST_NORMAL) if flushes() else carried


def _check(weight: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(
            f"weight must be a matrix, got shape {tuple(weight.shape)}: flatten it, or certify "
            "its slices one by one"
        )
    dense = weight.layout == torch.strided and weight.dtype not in PACKED
    if not weight.is_floating_point() or weight.is_meta or not dense:
        layout = "" if weight.layout == torch.strided else f" ({weight.layout})"
        raise ValueError(
            f"weight must hold real numbers, got {weight.dtype}{layout} on {weight.device}: "
            "dequantise it, make it dense, or load it"
        )


def _chosen(arithmetic: Arithmetic | None, device: torch.device) -> Arithmetic:
    if arithmetic not in (None, "float64", "float32"):
        raise ValueError(f"arithmetic must be 'float64', 'float32' or None, got {arithmetic!r}")
    return arithmetic or arithmetic_of(device)


def _gram(weight: Tensor, arithmetic: Arithmetic) -> _Gram:
    w, shift = _copy(weight.detach(), arithmetic)
    low, high = torch.aminmax(w)  # abs().amax() would copy once more
    largest = torch.maximum(high, -low)
    # mantissa / number is 2^-exponent, exactly.
    factor = torch.where(largest > 0, torch.frexp(largest).mantissa / largest, 1.0)
    factor = factor.clamp(max=LARGEST_FACTOR if w.dtype == torch.float64 else 2.0**120)
    w.mul_(factor)
    if arithmetic == "float32":
        w = w.float()
    tall = w if w.shape[-2] >= w.shape[-1] else w.mT
    with full_precision(w.device):
        g = lower_gram(tall)
    squares = _diagonal(g).sum(-1).amax()
    return _Gram(g, factor, squares, tall.shape[-2], arithmetic, shift)


def _quick_upper(weight: Tensor, sigma: Tensor) -> Tensor | None:
    """Return sigma * (1 + 1e-3) if short float32 sums prove it, None where they do not.

    Cholesky runs in float64 as ever; the shift covers the rounding of the sums, which are as short
    as that needs. For a CPU: half the time of `_gram`, and the same bound. It tries a matrix.
    """
    usual = weight.device.type == "cpu" and weight.dtype in QUICK_DTYPES and weight.ndim == 2
    if not usual or min(weight.shape) < QUICK_SIDE or library_may_round():
        return None
    # Not stacked: autocast of a CPU refuses to stack float16.
    low, high = (each.reshape(1).tolist()[0] for each in torch.aminmax(weight))
    largest, (least, most) = max(-low, high), QUICK_RANGE
    if not least < largest < most:  # NaN is not
        return None
    factor = math.frexp(largest)[0] / largest
    w = weight.detach().to(torch.float32, copy=True).mul_(factor)
    tall = w if w.shape[0] >= w.shape[1] else w.mT
    share = QUICK_SHARE * (sigma * factor / torch.linalg.vector_norm(w)).square() / UNIT
    (room,) = share.reshape(1).tolist()
    if not room >= QUICK_ROWS:
        return None
    rows = int(min(room, tall.shape[0]))
    with full_precision(w.device):
        g = lower_gram_in_pieces(tall, rows)
    scale = torch.full((), factor, dtype=torch.float64, device=w.device)
    gram = _Gram(g, scale, _diagonal(g).sum(), tall.shape[0], "float64", rows=rows)
    bound = _scaled(gram, sigma) * (1 + RUNGS[0])
    return rounded_up(bound / scale) if all(_passes(gram, bound).reshape(1).tolist()) else None


def _copy(weight: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, int]:
    """Return a copy times 2^shift that may be written. A float64 weight is scaled in float64."""
    cpu = weight.device.type == "cpu"
    if arithmetic == "float64" or weight.dtype == torch.float64 or cpu:
        return in_float64(weight)
    return weight.to(torch.float32, copy=True), 0


def _diagonal(g: Tensor) -> Tensor:
    return g.diagonal(dim1=-2, dim2=-1)


def _first_passing(gram: _Gram, rungs: list[Tensor]) -> Tensor:
    """Return the first rung that passes; the CPU skips the others, and reads without a wait."""
    for rung in rungs:
        if _passes(gram, rung).tolist():
            return rung
    return _last_resort(gram)


def _lowest_passing(gram: _Gram, rungs: list[Tensor]) -> Tensor:
    """Run all rungs and select the lowest passing one on the device: the host must not wait."""
    found = _last_resort(gram, squarings=2)
    for rung in reversed(rungs):
        found = torch.where(_passes(gram, rung), rung, found)
    return found


def _last_resort(gram: _Gram, squarings: int = 7) -> Tensor:
    """Bound the norm without sigma; G's rounding is added where it is known.

    Should `gram_bound` fail on a finite matrix, the Frobenius norm takes its place. So whoever
    divides by a bound always has one.
    """
    g = gram.g_NN.tril() + gram.g_NN.tril(-1).mT
    grams = [g] if g.ndim == 2 else g.unbind()
    bound = torch.stack([gram_bound(g, squarings=squarings) for g in grams]).amax()
    bound = torch.where(bound.isfinite(), bound, (gram.squares * (1 + GRAM_SLACK)).sqrt())
    if gram.arithmetic == "float32":
        return bound
    return (bound.square() + _gram_error(gram)).sqrt()


def _passes(gram: _Gram, s: Tensor) -> Tensor:
    """Return (0-d bool) whether s^2 I - G - shift has a Cholesky factor. NaN does not."""
    a = -gram.g_NN
    _diagonal(a).add_(s.square() - _shift(gram, s.square()))
    factor, info = torch.linalg.cholesky_ex(a, check_errors=False)
    # CUDA returns info = 0 for a NaN matrix (pytorch#64818): the second test is part of the proof.
    complete: Tensor = (info == 0).all() & _diagonal(factor).isfinite().all()
    return complete


def _shift(gram: _Gram, s2: Tensor) -> Tensor:
    """Bound the rounding errors of G, of the diagonal and of Cholesky, in the 2-norm."""
    if gram.arithmetic == "float32":
        return NUMERICAL_SHIFT * s2
    n = gram.g_NN.shape[-1]
    factorization = gamma(n + 2) / (1 - gamma(n + 2))
    return _gram_error(gram) + s2 * (n * factorization + 4 * 2.0**-53)


def _gram_error(gram: _Gram) -> Tensor:
    """Bound ||fl(G) - W'W||_2 by gamma_M ||W||_F^2; 1.01 covers the rounding of this very sum.

    Where float32 sums were added, by their gamma as well.
    """
    short = gamma(gram.rows + 2, UNIT) if gram.rows else 0.0
    return 1.01 * (gamma(gram.long + 2) + short) * gram.squares


def rounded_up(x: Tensor) -> Tensor:
    """Return x as float32, never below x: the nearest float32 would lose up to 6e-8."""
    y = x.float()
    return torch.where(y < x, torch.nextafter(y, torch.full_like(y, math.inf)), y)
