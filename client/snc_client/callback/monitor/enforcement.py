"""Enforcement: writes the weights of layers whose bound is above their threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snc_client.bounds import bound as bound_of
from snc_client.callback.model.master_weights import Masters, cast_down, lowered
from snc_client.callback.monitor.carried_bounds import CarriedBounds
from snc_client.callback.monitor.outside_energy import SUDDEN
from snc_client.certificate import RUNGS, carry
from snc_client.constraint import (
    CAP_MARGIN,
    CLIPS,
    FULL,
    cap_,
    clip_seen_,
    normalize_,
    rescale_,
    seen,
)
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator import LAG, BlockPower
from snc_client.layers import Layer
from snc_client.operators import Operator

Multiply: TypeAlias = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]

# sigma is an estimate from below. MARGIN covers its largest error at an active threshold (9e-4 over
# 1440 layer-steps), as long as the residual is below LAG. Above MOST_MARGIN the estimate is
# meaningless, and a rescale is not undone.
MARGIN, MOST_MARGIN = 1e-3, 0.1
# Above LAG the block has not met the top direction in full, and the square of the residual says too
# little. In the first steps of AdamW at a width of 768 sigma erred by up to .73 of the excess.
PER_LAG = 0.75
# The first bound that a certificate tries for this share of a threshold is the threshold itself,
# rounded down. A clip aims as low: values that the block has missed may be so far above the aim.
NEAR = (1 - 2.0**-22) / (1 + RUNGS[0])
# A clip through a warm block is right to 1e-7 of the largest singular value. It is not tried where
# that is above FAR_ABOVE thresholds, nor where the least value of the block is above CROWDED
# thresholds: then there are more to be clipped than the block has vectors.
FAR_ABOVE, CROWDED = 16.0, 1.01
# Where a certificate finds a weight so far above, it is not rescaled but capped as a whole.
MOST_EXCESS = 1.02
# A cap pushes dozens of singular values together, and sigma errs by up to 1.3 % then.
CLUSTER = 1.02
ROUNDS = 3  # rescales of a low-precision weight, whose rounding may undo the first one


def lagging(sigma: Tensor, residual: Tensor) -> Tensor:
    """Return where the warm block lags even after all iterations of its call, bool; NaN: False."""
    return residual > LAG * sigma


def presumed(
    sigma: Tensor, residual: Tensor, rise: Tensor | None = None, *, per_lag: float = PER_LAG
) -> Tensor:
    """Return sigma with a margin, to divide by without a certificate. It is no bound.

    ``per_lag``: the margin for a residual above LAG, per unit of the excess.

    Where the energy outside of the block has leapt (``rise``, in units of sigma^2), all of it may
    have come to a direction that had up to sigma.
    """
    relative = residual / sigma
    lag = MARGIN + per_lag * (relative - LAG).clamp(min=0.0)
    factor = 1.0 + torch.maximum(relative.square(), lag).clamp(max=MOST_MARGIN)
    if rise is not None:
        factor = torch.where(rise > SUDDEN, (1.0 + rise).sqrt(), factor)
    return sigma * factor


class Enforcement:
    """Rescales and clips the ``layers`` of one device, or their masters, without leaving it."""

    def __init__(self, layers: Sequence[Layer], masters: Masters) -> None:
        self._layers = tuple(layers)
        self._masters = masters

    def act(
        self,
        held: Sequence[int],
        capped: Collection[int],
        normalized: Collection[int],
        bound: Tensor,
        threshold: Tensor,
    ) -> Tensor:
        """Hold layers under their thresholds; return the factor of each largest singular value.

        ``bound`` and ``threshold`` are float32 [L]. The ``capped`` layers are clipped, the
        ``normalized`` ones brought to their thresholds from below as well, the others rescaled:
        that costs little below the threshold, and still holds after a sudden rise.
        """
        if reading_is_free(bound.device):
            # Writing a weight costs a quarter of a measurement: skip those below the threshold.
            breached = (bound > threshold).tolist()
            held = [i for i in held if breached[i] or i in normalized]
        factors = {i: self._layers[i].factors() for i in held}
        pairs = {i: pair for i, pair in factors.items() if len(pair) > 1}
        together = {
            i: self._act_on_pair(i, pair, bound, threshold, both_ways=i in normalized)
            for i, pair in pairs.items()
        }
        held = [i for i in held if i not in pairs]
        stored = {i: factors[i][0] for i in held}
        found = {i: self._masters.of(self._layers[i]) for i in held}
        masters = {i: master for i, master in found.items() if master is not None}
        low, aim = lowered(bound, threshold, {i: stored[i].dtype for i in masters})
        written = {**stored, **masters}
        clipped = [i for i in held if i in capped]
        both_ways = {i: weight for i, weight in written.items() if i in normalized}
        rest = {i: w for i, w in written.items() if i not in clipped and i not in both_ways}
        scale = self._multiplied(rescale_, rest, low, aim)
        if both_ways:
            scale = scale * self._multiplied(normalize_, both_ways, bound, aim)
        for i in clipped:
            clip_ = CLIPS[self._layers[i].clip]
            scale[i].copy_(clip_(written[i], low[i], aim[i]))
            if clip_ is cap_:
                if i in masters:
                    cast_down(stored[i], masters[i], scale[i])
                upper = self._upper(i, threshold[i]).reshape(1)
                scale[i].mul_(rescale_([written[i]], upper, threshold[i : i + 1])[0])
        for i, master in masters.items():
            cast_down(stored[i], master, scale[i])
        if self._masters.distributed:
            for i in (i for i in rest if i not in masters):
                self._masters.follow(self._layers[i], scale[i])
        for i, both in together.items():
            scale[i].copy_(both)
        return scale

    def clip(self, i: int, rows: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Cap layer ``i`` through the ``rows`` of its warm block, and prove the result.

        For a CPU, whose memory the host reads freely, and a finite weight. Where the certificate
        fails, the proven excess is divided out, or all singular values are capped if it is large.
        ``threshold`` is 0-d. Returns the factor of the largest singular value, and a bound of what
        is stored now: at most the threshold times 1 + 2^-24 sqrt(min(m, n)).
        """
        stored = self._layers[i].weight()
        master = self._masters.of(self._layers[i])
        written = stored if master is None else master
        unit = 0.0 if stored.dtype in FULL else torch.finfo(stored.dtype).eps / 2
        limit = threshold * (1 - unit)
        scale = torch.ones_like(threshold)

        def changed(factor: Tensor) -> None:
            scale.mul_(factor)
            if master is not None:
                stored.copy_(master)

        found = seen(written, rows)
        whole = len(rows) == rows.shape[1]  # nothing lies outside of the block
        aim = limit.double() * (1 - CAP_MARGIN if whole else NEAR)
        most, least, high = (torch.stack([found.largest, found.least, aim]) / limit).tolist()
        if most > FAR_ABOVE or (least > CROWDED and not whole):
            changed(cap_(written, found.largest.float(), limit))
        elif most > high:
            clip_seen_(written, rows, found, aim)
            changed((aim / found.largest).float())
        upper = self._upper(i, threshold)
        if MOST_EXCESS < _number(upper / threshold) < math.inf:
            changed(cap_(written, upper, limit))
            upper = self._upper(i, threshold)
        for _ in range(ROUNDS):
            if not 1 < _number(upper.double() / threshold) < math.inf:
                break
            factor = rescale_([written], upper.reshape(1), limit.reshape(1))[0]
            changed(factor)
            if stored.dtype in FULL:
                frobenius = upper * min(stored.shape) ** 0.5
                return scale, carry(upper, scale=factor, frobenius=frobenius)
            upper = self._upper(i, threshold)
        return scale, upper

    def _upper(self, i: int, threshold: Tensor) -> Tensor:
        """Return a certified bound of what is stored, 0-d: the first one tried is the threshold."""
        return bound_of(self._layers[i].operator(), threshold * NEAR)

    def _act_on_pair(
        self,
        i: int,
        factors: Sequence[Tensor],
        bound: Tensor,
        threshold: Tensor,
        *,
        both_ways: bool,
    ) -> Tensor:
        """Multiply each factor of a product by the root of its scale; return the scale, 0-d."""
        multiply_ = normalize_ if both_ways else rescale_
        both = torch.ones_like(bound[i])
        for factor in factors:
            root, aim = bound[i : i + 1].sqrt(), threshold[i : i + 1].sqrt()
            master = self._masters.of(self._layers[i], factor)
            if master is None:
                both = both * multiply_([factor], root, aim)[0]
                continue
            low, lower_aim = lowered(root, aim, {0: factor.dtype})
            scale = multiply_([master], root if both_ways else low, lower_aim)[0]
            cast_down(factor, master, scale)
            both = both * scale
        return both

    def _multiplied(
        self, multiply_: Multiply, written: Mapping[int, Tensor], bound: Tensor, threshold: Tensor
    ) -> Tensor:
        layers, weights = list(written), list(written.values())
        if not layers:
            return torch.ones_like(bound)
        if len(layers) == len(self._layers):
            return multiply_(weights, bound, threshold)
        places = to_device(layers, bound.device, torch.int64)
        here = (x.index_select(0, places) for x in (bound, threshold))
        scale = multiply_(weights, *here)
        return torch.ones_like(bound).index_copy(0, places, scale)


def _number(x: Tensor) -> float:
    """Return a 0-d tensor of a CPU as a number."""
    found: Any = x.tolist()
    return float(found)


class WarmCaps:
    """Caps ``layers`` of one CPU through their warm blocks, and proves what is stored afterwards.

    The proof is carried to the next measurement, so that a layer at rest is not touched again.
    """

    def __init__(
        self,
        every: Sequence[Layer],
        enforcement: Enforcement,
        carried: CarriedBounds,
        *,
        strict: bool,
    ) -> None:
        self.layers: frozenset[int] = frozenset()
        self._every, self._strict = every, strict
        self._enforcement, self._carried = enforcement, carried

    def set(self, capped: Iterable[int]) -> None:
        """Take over those of the ``capped`` layers whose singular values are clipped."""
        self.layers = frozenset(i for i in capped if self._every[i].clip == "values")

    def choose(
        self,
        measured: Collection[int],
        operators: Mapping[int, Operator],
        divisor: Tensor,
        upper: Tensor,
        threshold: Tensor,
    ) -> list[int]:
        """Return those of the ``measured`` layers that no bound proves to be below ``threshold``.

        All vectors are [L]; ``upper`` receives the bounds of layers at rest. Without ``strict``,
        only layers whose ``divisor`` is near the threshold are looked at; a weight that is not
        finite has none.
        """
        if not measured:
            return []
        near = divisor.isfinite() & (divisor * (1.0 if self._strict else CLUSTER) > threshold)
        near, below = torch.stack([near, upper <= threshold]).tolist()
        close = [i for i in measured if near[i] and not below[i]]
        if self._strict:
            return close
        rest = [i for i in close if self._carried.at_rest(i, operators[i], threshold[i])]
        for i in rest:
            upper[i].copy_(self._carried.upper(i))
        return [i for i in close if i not in rest]

    def act(
        self, chosen: Sequence[int], power: BlockPower, threshold: Tensor, scale: Tensor
    ) -> None:
        """Cap the ``chosen`` layers; write their factors into ``scale`` [L]."""
        for i in chosen:
            factor, upper = self._enforcement.clip(i, power.vectors(i), threshold[i])
            scale[i].copy_(factor)
            self._carried.certified(i, self._every[i].operator(), upper)
