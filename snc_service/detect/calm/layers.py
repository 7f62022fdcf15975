"""The layers of calm rows: of each run a row, with an axis for the runs where a batch has its rows.

Each operation is the one of `trends` and of the rule's own module, so the numbers are the same bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.detect.calm.row import PLACE, CalmRow
from snc_service.detect.layer_rules import EARLY_ROWS, GROWING, LEAST_LAYERS
from snc_service.detect.memory import KEPT_TOGETHER
from snc_service.detect.trends import (
    LARGEST,
    LONG_ROWS,
    NAN,
    RECENT_ROWS,
    SMALLEST,
    TINY_GRADIENT,
    TINY_NORM,
    Doubles,
)
from snc_service.detect.value_rules import RISING, ratios
from snc_service.wire.batch import Floats


@dataclass(eq=False)
class CalmLayers:
    """Rows of R runs whose metrics are [R, L], and the values [R, rules] to compare with limits."""

    rows: Sequence[CalmRow]
    metrics: Mapping[str, Floats]
    tables: Floats  # [R, kept together, L]: advanced in place
    values: Doubles
    limits: Doubles

    def __post_init__(self) -> None:
        self.unclear = np.zeros(len(self.rows), np.bool_)
        self.rise = np.array([row.rise for row in self.rows])
        # Columns [R, L] of the memories.
        columns = self.tables.transpose(1, 0, 2)
        self.past: dict[str, Floats] = dict(zip(KEPT_TOGETHER, columns, strict=True))

    def largest(self, rule: str, columns: Floats) -> None:
        """Let a rule compare the largest value over layers of each run."""
        self.values[:, PLACE[rule]] = np.fmax.reduce(columns, axis=1)

    def judge(self) -> None:
        """Advance the layers and set the values of all rules that look at them."""
        trained = np.array([row.memory.trained - 1 for row in self.rows], np.int64)
        jump = self._sigma(trained)
        if "frobenius" in self.metrics:
            jump = np.fmax(jump, self._norm())
        gaps = np.array([row.gap for row in self.rows], np.int64)
        self.largest("sigma_jump", jump / np.sqrt(gaps).astype(np.float32)[:, None])
        if "grad_norm" in self.metrics:
            self._gradient()
        if "threshold" in self.metrics:
            self._threshold()

    def _sigma(self, trained: npt.NDArray[np.int64]) -> Floats:
        """Judge log sigma against its past; return its change."""
        sigma, floor = self.metrics["sigma"], self.past["floor"]
        now = _log(sigma + floor)
        jump: Floats = np.abs(now - self.past["newest"])
        self.past["newest"][:] = self._after_action(sigma, now, floor)
        growth = self._against_mean(now, "mean", _shares(trained, RECENT_ROWS))
        long = self._against_mean(now, "long_mean", _shares(trained, LONG_ROWS))
        self.largest("sigma_growth", growth)
        since_start = now - self.past["start"]
        early = (trained < EARLY_ROWS)[:, None]
        self.largest("sigma_vs_init", np.where((long > GROWING) | early, since_start, NAN))
        least = np.fmin.reduce(long, axis=1).astype(np.float64)
        if long.shape[1] >= LEAST_LAYERS:
            self.values[:, PLACE["coherent_growth"]] = least
        # The median is only taken where it may lie beyond the limit.
        limit = self.limits[:, PLACE["loss_trend"]]
        self.unclear |= (self.rise > RISING) & (np.fmax.reduce(long, axis=1) > limit)
        limit = self.limits[:, PLACE["shrink"]]
        if (least < -limit).any():
            below = (long < -limit[:, None]).sum(axis=1)
            self.unclear |= 2 * below >= long.shape[1]
        return jump

    def _after_action(self, values: Floats, now: Floats, floor: Floats) -> Floats:
        """Return the logarithms after the action, so that a rescale is not taken for a jump."""
        scale = self.metrics.get("scale")
        if scale is None:
            return now
        acted = (scale > 0) & (scale != 1)
        if not acted.any():
            return now
        after: Floats = np.where(acted, scale, np.float32(1)) * values + floor
        return _log(after)

    def _against_mean(self, now: Floats, name: str, shares: Doubles) -> Floats:
        """Return ``now`` above its running mean, and advance the mean."""
        mean = self.past[name]
        apart: Floats = now - mean
        mean += shares.astype(np.float32)[:, None] * apart
        return apart

    def _norm(self) -> Floats:
        """Judge the Frobenius norms; return the change of their logarithms."""
        norm, floor = self.metrics["frobenius"], self.past["norm_floor"]
        held = norm + floor
        now = _log(held.copy())
        jump: Floats = np.abs(now - self.past["newest_norm"])
        self.past["newest_norm"][:] = self._after_action(norm, now, floor)
        gradient, update = self.metrics.get("grad_norm"), self.metrics.get("update_norm")
        if gradient is not None:
            stood = (jump == 0) & (gradient > 0)
            self.unclear |= np.logical_or.reduce(stood, axis=1)
        if update is not None:
            ratio = update / np.maximum(held, TINY_NORM)
            self.largest("update_ratio", np.minimum(ratio, LARGEST))
        return jump

    def _gradient(self) -> None:
        reported, norm = self.metrics["grad_norm"], self.metrics.get("frobenius")
        gradient = np.maximum(reported, TINY_GRADIENT)
        shares = np.full(len(self.rows), 1 / RECENT_ROWS)
        drop = -self._against_mean(np.log(gradient), "gradient", shares)
        zero = reported == 0
        if zero.any():
            idle = zero & (2 * zero.sum(axis=1, keepdims=True) < zero.shape[1])
            drop[idle] = gradient[idle] = NAN
        least = np.fmin.reduce(drop, axis=1, initial=NAN).astype(np.float64)
        least -= np.array([row.fall for row in self.rows])
        tiny = np.full(len(self.rows), -np.inf)
        if norm is not None:
            ratio = gradient / np.maximum(norm, TINY_NORM)
            smallest = np.fmin.reduce(ratio, axis=1, initial=NAN)
            is_tiny = smallest < 1e-7
            tiny[is_tiny] = -np.log10(np.maximum(smallest[is_tiny], 1e-30)) - 7
        self.values[:, PLACE["grad_vanish"]] = np.fmax(least, tiny)

    def _threshold(self) -> None:
        """Compare sigma with its threshold."""
        sigma, threshold = self.metrics["sigma"], self.metrics["threshold"]
        self.values[:, PLACE["breach"]] = (sigma > threshold).sum(axis=1)
        rising = np.flatnonzero(self.rise > RISING)
        if rising.size:
            far = np.fmax.reduce(ratios(sigma[rising], threshold[rising]), axis=1)
            self.values[rising, PLACE["breach_far"]] = far


def _log(values: Floats) -> Floats:
    np.maximum(values, SMALLEST, out=values)
    np.minimum(values, LARGEST, out=values)
    logs: Floats = np.log(values, out=values)
    return logs


def _shares(trained: npt.NDArray[np.int64], window: int) -> Doubles:
    shares: Doubles = np.where(trained <= window, 1 / (trained + 1), 1 / window)
    return shares
