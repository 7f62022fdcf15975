"""Change weights on the device so that a threshold holds, without a branch. Pure tensors.

`rescale_` multiplies a weight by min(1, threshold / sigma_upper): all singular values shrink.
`normalize_` multiplies it by threshold / sigma_upper, up or down. `cap_` clips the singular values
above the threshold and does not change the others; `clip_seen_` clips those that a warm block has
found. None of them waits for the device. `rescale_` and `cap_` keep every bit of a weight at or
under its threshold, and all keep every bit of one that is not finite.

In bfloat16 and float16 a product is rounded to few digits, and a factor within half a spacing of
one would change nothing. So these aim lower, by one unit roundoff of the weight's dtype (2^-8 and
2^-11): the weight lands at or under the threshold after rounding in every case seen, which is no
proof; a certificate of the stored weight is. Where there are float32 master weights, constrain
those, then cast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from snc_client.devices import float64_is_fast
from snc_client.operators import Matrix, row_norms
from snc_client.precision import finite, full_precision

FULL = (torch.float32, torch.float64)
CAP_MARGIN = 2.0**-19  # relative: float32 errs by this
# Singular values below this share of the norm bound may keep a blurred sign.
LOWEST = {torch.float32: 1e-7, torch.float64: 1e-11}
FEW = 4.0  # thresholds: above that, float32 loses digits of the singular values at the threshold
AT_REST = 2.0**-16  # relative: a norm that is so little below its threshold is not brought up
SLACK = 2.0**-20  # relative: bounds of one weight differ by up to 4e-7 from step to step
LARGEST_FACTOR = 2.0**96  # brings a subnormal weight to one in a few steps, and keeps 0 finite


@torch.no_grad()
def rescale_(weights: Sequence[Tensor], sigma_upper: Tensor, threshold: Tensor) -> Tensor:
    """Multiply each weight in place by min(1, threshold / sigma_upper); return these scales, [L].

    ``sigma_upper`` and ``threshold`` are [L] on the weights' device; weights may have any shape and
    may be views. A layer whose bound is not finite, or whose threshold is NaN or +inf, is not
    changed (scale 1). Pass the bound of *this* step: one carried from an older step has grown by
    its drift, and dividing by it at every step is a hidden weight decay.

    float32 lands at the threshold to 1e-7; low precision as described above. Optimizer state is not
    changed. Cost: one pass over every weight, whether or not it is above its threshold.
    """
    aim = _aims(weights, threshold)
    breach = finite(sigma_upper) & (sigma_upper > threshold)
    scale = _scales_to(aim, sigma_upper, breach)
    _multiply(weights, scale)
    return scale


@torch.no_grad()
def normalize_(weights: Sequence[Tensor], sigma_upper: Tensor, threshold: Tensor) -> Tensor:
    """Multiply each weight in place by threshold / sigma_upper; return these scales, [L].

    As `rescale_`, and a weight below its threshold is brought up to it as well. Left alone are zero
    weights, those without a finite bound or threshold, and those within `AT_REST` below the
    threshold (one unit roundoff in low precision). In full precision a weight is brought to
    `SLACK` below it, so that the rounding of later bounds does not move it. One step scales up by
    2^96 at most. No entry leaves the range of its dtype, because none is larger than the norm: the
    aim is at most half of the largest number.
    """
    largest = [min(torch.finfo(w.dtype).max, torch.finfo(torch.float32).max) / 2 for w in weights]
    room = [c.clamp(max=top) for c, top in zip(threshold.unbind(), largest, strict=True)]
    aim = _aims(weights, torch.stack(room)) if weights else threshold
    rest = [AT_REST if w.dtype in FULL else torch.finfo(w.dtype).eps / 2 for w in weights]
    low = torch.stack([x * (1 - r) for x, r in zip(aim.unbind(), rest, strict=True)])
    settled = (sigma_upper >= low) & (sigma_upper <= threshold)
    known = sigma_upper.isfinite() & (sigma_upper > 0) & threshold.isfinite()
    slack = [SLACK if w.dtype in FULL else 0.0 for w in weights]
    under = torch.stack([x * (1 - s) for x, s in zip(aim.unbind(), slack, strict=True)])
    scale = _scales_to(under, sigma_upper, known & ~settled)
    _multiply(weights, scale)
    return scale


def _scales_to(aim: Tensor, sigma_upper: Tensor, wanted: Tensor) -> Tensor:
    """Return aim / sigma_upper where ``wanted``, else 1; float32."""
    quotient = (aim / torch.where(wanted, sigma_upper, 1.0)).clamp(max=LARGEST_FACTOR)
    # Towards zero: a quotient rounded up would put the weight above its threshold.
    return torch.where(wanted, torch.nextafter(quotient, torch.zeros_like(quotient)), 1.0).float()


def _multiply(weights: Sequence[Tensor], scale: Tensor) -> None:
    for weight, factor in zip(weights, scale.unbind(), strict=True):
        if weight.dtype in FULL:
            weight.mul_(factor)
        else:  # one rounding, of a float32 product; a scale rounded to bfloat16 is off by 3e-3
            weight.copy_(
                torch.where(factor == 1, weight, (weight.float() * factor).to(weight.dtype))
            )


@torch.no_grad()
def cap_(weight: Tensor, sigma_upper: Tensor, threshold: Tensor) -> Tensor:
    """Clip the singular values of ``weight`` (m, n) above ``threshold`` in place; return the scale.

    The scale (0-d) is the factor of the largest singular value, 1 where nothing was done. W is
    written only if ``sigma_upper`` is finite and above the threshold; then singular values above
    the threshold become the threshold, the others and all singular vectors stay. All are right
    within 5e-6 of the threshold, and under it, also where the largest is 3,000 thresholds, in
    float32; low precision rounds after that. (Without float64, as on MPS and consumer GPUs: within
    5e-6 up to 4 thresholds, and 5e-7 of the largest above that.)

    With O = msign(W), H = O'W - c I and |H| = H msign(H): W <- O (H + 2 c I - |H|) / 2, that is
    (s + c - |s - c|) / 2 = min(s, c) for each singular value. Products only, so it runs anywhere
    without waiting; about 80 of them (110 in float64), so call it when there is a breach that
    `clip_seen_` cannot mend, not at every step.
    """
    breach = sigma_upper.isfinite() & (sigma_upper > threshold)
    ratio = torch.where(breach, sigma_upper / threshold, 1.0).clamp(max=1e3)
    double = weight.dtype == torch.float64 or (
        # A CPU may be asked; elsewhere the host does not wait for the answer.
        float64_is_fast(weight.device)
        and (weight.device.type != "cpu" or any((ratio.reshape(1) > FEW).tolist()))
    )
    more = 0.0 if double else ratio / 4
    aim = _aims([weight], threshold.reshape(1))[0] * (1 - CAP_MARGIN * (1 + more))
    w = weight.to(torch.float64 if double else torch.float32)
    tall = _tall(w)
    with full_precision(w.device):
        capped = _capped(tall, torch.where(breach, aim, 1.0).to(w.dtype))
    capped = (capped if tall is w else capped.mT).to(weight.dtype)
    weight.copy_(torch.where(breach & capped.isfinite().all(), capped, weight))
    return torch.where(breach, aim / torch.where(breach, sigma_upper, 1.0), 1.0).float()


class SpanView(NamedTuple):
    """A weight on the span of some vectors: W x_i are orthogonal, of the lengths s. See `seen`."""

    s_B: Tensor  # float64, ascending
    x_BB: Tensor  # combinations of the vectors: orthonormal x_i
    products_BM: Tensor  # W times the vectors, float64

    @property
    def largest(self) -> Tensor:
        """The largest singular value on the span, 0-d: at most that of the weight."""
        return self.s_B[-1]

    @property
    def least(self) -> Tensor:
        """The least but one, 0-d: the last vector of a warm block only explores."""
        return self.s_B[min(1, len(self.s_B) - 1)]


@torch.no_grad()
def seen(weight: Tensor, rows_BN: Tensor) -> SpanView:
    """Return what the span of ``rows_BN`` (float32) shows of the singular values of ``weight``.

    The rows are independent vectors of the small side of the weight (m, n), as those of a warm
    block. Both must be finite, on a CPU. Cost: half an iteration of the block.
    """
    with full_precision(weight.device):
        products = Matrix(_tall(weight)).matmul(rows_BN.mT).mT.double()
        rows = rows_BN.double()
        root = torch.linalg.inv(torch.linalg.cholesky_ex(rows @ rows.mT).L)
        squares, turn = torch.linalg.eigh(root @ (products @ products.mT) @ root.mT)
    return SpanView(squares.clamp(min=0).sqrt(), turn.mT @ root, products)


@torch.no_grad()
def clip_seen_(weight: Tensor, rows_BN: Tensor, found: SpanView, aim: Tensor) -> None:
    """Clip the singular values above ``aim`` (0-d) that `seen` has found, in place.

    W <- W (I - X' D X), D = max(0, 1 - aim / s): the factor on the right is a contraction, so that
    no singular value grows, whatever the rows are. On their span the norm is ``aim`` then; how far
    above it is elsewhere, only a certificate says. Where all are singular vectors this is the cap.
    float32 is right to 1e-7 of the largest. Cost: half an iteration, and one pass over the weight.
    """
    share = torch.where(found.s_B > aim, 1 - aim / found.s_B, 0.0)
    clip_BB = (found.x_BB.mT * share) @ found.x_BB
    left_MB = (clip_BB @ found.products_BM).to(rows_BN.dtype).mT
    tall = _tall(weight)
    with full_precision(weight.device):
        if weight.dtype == torch.float32:
            tall.addmm_(left_MB, rows_BN, alpha=-1)
        else:
            wide = torch.promote_types(weight.dtype, torch.float32)
            tall.copy_(tall.to(wide) - (left_MB @ rows_BN).to(wide))


@torch.no_grad()
def clip_entries_(weight: Tensor, sigma_upper: Tensor, threshold: Tensor) -> Tensor:
    """Clip the entries of a gain to +-``threshold`` in place, as `cap_` does singular values.

    The singular values of a diagonal matrix are its |entries|, so nothing is approximated.
    """
    breach = sigma_upper.isfinite() & (sigma_upper > threshold)
    aim = _aims([weight], threshold.reshape(1))[0]
    low = weight.to(torch.promote_types(weight.dtype, torch.float32)).clamp(-aim, aim)
    weight.copy_(torch.where(breach, low.to(weight.dtype), weight))
    return torch.where(breach, aim / torch.where(breach, sigma_upper, 1.0), 1.0).float()


@torch.no_grad()
def clip_rows_(weight: Tensor, sigma_upper: Tensor, threshold: Tensor) -> Tensor:
    """Shrink the rows of a table (rows, d) that are longer than ``threshold`` to it, in place."""
    breach = sigma_upper.isfinite() & (sigma_upper > threshold)
    # The rounding of the norm and of the products is subtracted first.
    aim = _aims([weight], threshold.reshape(1))[0] * (1 - (weight.shape[1] + 8) * 2.0**-24)
    norms = row_norms(weight)
    long = breach & (norms > aim) & norms.isfinite()
    scale = torch.where(long, aim / torch.where(long, norms, 1.0), 1.0).unsqueeze(1)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight.copy_(torch.where(scale < 1, (wide * scale).to(weight.dtype), weight))
    return torch.where(breach, aim / torch.where(breach, sigma_upper, 1.0), 1.0).float()


CLIPS: Final = {"values": cap_, "entries": clip_entries_, "rows": clip_rows_}


def matrix_sign(a_MN: Tensor) -> Tensor:
    """Return U V' of A = U S V' for m >= n (zero singular values stay zero), by products only.

    Newton-Schulz, scaled so that each step lifts small singular values by up to 2.6 (Chen & Chow,
    A stable scaling of Newton-Schulz, 2014). Those below 1e-7 of the norm bound are not lifted all
    the way (float64: 1e-11).
    """
    size = _norm_bound(a_MN)
    x = a_MN / torch.where(size > 0, size, 1.0)
    for a in _SCALES[a_MN.dtype]:
        x = a * (1.5 * x - (0.5 * a * a) * (x @ (x.mT @ x)))
    return x


def _scales(low: float) -> list[float]:
    """Return the factors that bring singular values in [low, 1] closest together at each step."""
    scales = []
    while 1 - low > 1e-8:
        # Below sqrt 3, where the cubic has its zero, also for x slightly above one.
        a = min(math.sqrt(3 / (1 + low + low * low)), 1.70)
        scales.append(a)
        low = min(a * low * (1.5 - 0.5 * (a * low) ** 2), a * (1.5 - 0.5 * a * a))
    return [*scales, 1.0, 1.0]


_SCALES = {dtype: _scales(low) for dtype, low in LOWEST.items()}


def _norm_bound(a: Tensor) -> Tensor:
    """Bound the spectral norm by sqrt(||A||_1 ||A||_inf) and by the Frobenius norm."""
    size = a.abs()
    sums = size.sum(0).amax().sqrt() * size.sum(1).amax().sqrt()
    return torch.minimum(sums, torch.linalg.vector_norm(a)) * (1 + 1e-5)


def _capped(w_MN: Tensor, aim: Tensor) -> Tensor:
    w = w_MN / aim
    o = matrix_sign(w)
    h = o.mT @ w
    eye = torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
    h = (h + h.mT) / 2 - eye
    positive = h @ matrix_sign(h)
    return o @ ((h + 2 * eye - positive) * (0.5 * aim))


def _tall(w: Tensor) -> Tensor:
    return w if w.shape[0] >= w.shape[1] else w.mT


def _aims(weights: Sequence[Tensor], threshold: Tensor) -> Tensor:
    """Return the thresholds, lower by one unit roundoff where a weight's precision is low."""
    if all(w.dtype in FULL for w in weights):
        return threshold
    # Host numbers times 0-d tensors: a tensor made of them would have to be copied to the device.
    aims = [1.0 if w.dtype in FULL else 1.0 - torch.finfo(w.dtype).eps / 2 for w in weights]
    return torch.stack([c * aim for c, aim in zip(threshold.unbind(), aims, strict=True)])
