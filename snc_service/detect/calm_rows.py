"""Calm rows: one row of each of several runs, judged together.

A row is calm if every value of it is finite, its layers are the known ones, and no rule raises an
event: none is above its limit, but for a breach that goes on. Nearly all rows of small batches are
calm, and one numpy call covers those of many runs. The others are left to `rules.judge`, which then
finds the memory unchanged. Both give the same events and the same memory bit for bit: each
operation here is the one of `trends` and of the rule's own module, on an array with an axis for the
runs in place of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect import onset, scalar_rules
from snc_service.detect.layer_rules import EARLY_ROWS, GROWING, LEAST_LAYERS
from snc_service.detect.memory import KEPT_TOGETHER, Memory
from snc_service.detect.running import LEAST_REST
from snc_service.detect.trends import (
    LARGEST,
    LONG_ROWS,
    RECENT_ROWS,
    SMALLEST,
    TINY_GRADIENT,
    TINY_NORM,
    Doubles,
)
from snc_service.detect.value_rules import RISING, ratios
from snc_service.store.types import RunRows
from snc_service.wire.batch import Floats
from snc_service.wire.rule_settings import SHIPPED

Mask: TypeAlias = npt.NDArray[np.bool_]
_PLACE: Final = {name: place for place, name in enumerate(SHIPPED)}
_NAN: Final = np.float32(np.nan)
_BREACH: Final = onset.BAND_RULES.index("breach")
# What a rule reads: without these columns it has nothing to say.
_METRICS: Final[Mapping[str, frozenset[str]]] = {
    "breach": frozenset(("threshold",)),
    "breach_far": frozenset(("threshold",)),
    "update_ratio": frozenset(("frobenius", "update_norm")),
    "grad_vanish": frozenset(("grad_norm",)),
    "unchanged": frozenset(("frobenius", "grad_norm")),
}
_OF_VECTORS: Final = "gain_growth"  # of layers without sigma: none of these rows has one
_SCALARS: Final[Mapping[str, str]] = {
    "breach_far": "loss",
    "guard": "guard_vetoes",
    "guard_rollback": "guard_rollbacks",
    "lr_jump": "lr",
    "grad_spike": "grad_norm",
    "loss_divergence": "loss",
    "loss_trend": "loss",
    "loss_regain": "loss",
    "skipped_steps": "skipped_steps",
}
# What the memory must hold of every layer, by metric.
_NEEDED: Final = (
    ("sigma", frozenset(("start", "floor", "newest", "mean", "long_mean"))),
    ("frobenius", frozenset(("norm_floor", "newest_norm"))),
    ("grad_norm", frozenset(("gradient",))),
)
_NOT_OF_A_MOVING_TARGET: Final = frozenset(("loss_divergence", "loss_regain"))


@dataclass(eq=False)
class _Row:
    """A row that may be calm, and what its scalars have changed in the memory so far."""

    place: int
    memory: Memory
    rows: RunRows
    before: list[tuple[object, dict[str, Any]]]
    values: list[float]  # one for each rule, NaN where it has none
    gap: int
    usual_gap: int
    rise: float = math.nan
    fall: float = 0.0

    def undo(self) -> None:
        """Set back what the scalars have changed."""
        for each, state in self.before:
            each.__dict__.update(state)


def judge_calm(items: Sequence[tuple[Memory, RunRows]]) -> list[bool]:
    """Judge the calm rows among the next rows of several runs; return which ones were calm.

    The memory of a calm row has advanced, and the row raises no event. The others are unchanged.
    No two items may be of one run. Cost: some 60 numpy calls for all runs that report the same
    metrics of equally many layers, and some 15 us per run.
    """
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for place, (memory, rows) in enumerate(items):
        if _may_be_calm(memory, rows):
            groups.setdefault((rows.batch.metrics, rows.batch.num_layers), []).append(place)
    calm = [False] * len(items)
    for (metrics, _), places in groups.items():
        values = np.stack([items[place][1].batch.values[:, 0] for place in places], axis=1)
        finite = np.isfinite(values)
        if not finite.all():
            whole = np.flatnonzero(finite.all(axis=(0, 2)))
            places, values = [places[each] for each in whole.tolist()], values[:, whole]
        if places:
            rows_ = [_advanced(place, *items[place]) for place in places]
            for row in _calm(rows_, dict(zip(metrics, values, strict=True))):
                calm[row.place] = True
    return calm


def _may_be_calm(memory: Memory, rows: RunRows) -> bool:
    """Return whether the row need not be left to `rules.judge` for its form."""
    batch = rows.batch
    if len(batch.steps) > 1 or rows.new_attempt or memory.step is None or not batch.num_layers:
        return False
    if "sigma" not in batch.metrics or not memory.covers(rows.layers):
        return False
    known = memory.keep_together()
    if any(metric in batch.metrics and not known >= needed for metric, needed in _NEEDED):
        return False
    if rows.annotations and any(
        each.step <= batch.steps[0] and each.id not in memory.annotated for each in rows.annotations
    ):
        return False
    return all(map(math.isfinite, batch.scalar_values[:, 0].tolist())) if batch.scalars else True


def _advanced(place: int, memory: Memory, rows: RunRows) -> _Row:
    """Advance all but the layers of a memory by one row."""
    batch = rows.batch
    scalars: Mapping[str, float] = (
        dict(zip(batch.scalars, batch.scalar_values[:, 0].tolist(), strict=True))
        if batch.scalars
        else {}
    )
    parts = (memory.loss, memory.gradient, memory.rise, memory.regain, memory.fall, memory.skips)
    before: list[tuple[object, dict[str, Any]]] = [(each, dict(vars(each))) for each in parts]
    names = ("step", "gap", "trained", "largest_lr", "moving", "skipped_in_row")
    before.append((memory, {name: getattr(memory, name) for name in names}))
    gap, usual = memory.advance_step(batch.steps[0])
    row = _Row(place, memory, rows, before, [math.nan] * len(SHIPPED), gap, usual)
    values = row.values
    values[_PLACE["nonfinite"]] = values[_PLACE["unchanged"]] = 0.0
    for rule, scalar in (("guard", "guard_vetoes"), ("guard_rollback", "guard_rollbacks")):
        if scalar in scalars:
            values[_PLACE[rule]] = scalars[scalar]
    if (count := scalars.get("skipped_steps")) is not None:
        share = memory.skips.advance(count, gap, gap * memory.trained)
        values[_PLACE["skipped_steps"]] = share
    if (loss := scalars.get("loss")) is not None:
        score, row.rise, regain, row.fall = scalar_rules.advance_loss(memory, loss)
        values[_PLACE["loss_divergence"]], values[_PLACE["loss_regain"]] = score, regain
    if (norm := scalars.get("grad_norm")) is not None:
        (values[_PLACE["grad_spike"]],) = scalar_rules.advance_gradient(memory, norm)
    if (rate := scalars.get("lr")) is not None:
        (values[_PLACE["lr_jump"]],) = scalar_rules.advance_lr(memory, rate)
    memory.moving = memory.moving or scalars.get("moving_target", 0.0) > 0
    if memory.moving:
        for rule in _NOT_OF_A_MOVING_TARGET:
            values[_PLACE[rule]] = math.nan
    memory.trained += 1
    memory.skipped_in_row = 0
    return row


def _calm(rows: list[_Row], metrics: Mapping[str, Floats]) -> list[_Row]:
    """Judge the layers of ``rows`` by their metrics [R, L]; return the calm, undo the others."""
    tables = np.stack([row.memory.together for row in rows if row.memory.together is not None])
    values = np.array([row.values for row in rows])
    limits = np.array([row.rows.settings.limits for row in rows])
    group = _Group(rows, metrics, tables, values, limits)
    with np.errstate(all="ignore"):  # hostile rows may overflow
        group.judge()
        above = values > limits
        over = above[:, _PLACE["breach"]]
        is_loud = (group.unclear | (above.sum(axis=1) > over)).tolist()
        calm = []
        for place, (row, is_over) in enumerate(zip(rows, over.tolist(), strict=True)):
            if is_loud[place] or (is_over and not _goes_on(row)):
                row.undo()
                continue
            assert row.memory.together is not None
            row.memory.together[:] = tables[place]
            _count(row, is_over=is_over)
            if is_over:
                sigma, threshold = metrics["sigma"][place], metrics["threshold"][place]
                finding = onset.Outside(0, _BREACH, ratios(sigma, threshold))
                lasting = (0,) if row.rows.settings["breach"].severity != "info" else ()
                onset.remember(row.memory, row.rows, [finding], lasting)
            calm.append(row)
    return calm


def _goes_on(row: _Row) -> bool:
    """Return whether a breach fires as it did a few rows before, which is no event.

    Sparse rows need fewer rows for the same: such a breach may be left to `rules.judge`.
    """
    setting, firing = row.rows.settings["breach"], row.memory.firing.get("breach")
    return (
        firing is not None
        and firing.streak + 1 >= setting.for_rows
        and firing.quiet <= LEAST_REST
        and row.memory.trained > setting.armed
    )


def _count(row: _Row, *, is_over: bool) -> None:
    """Count a quiet row for every rule that has judged it, but for a breach that goes on."""
    batch, settings, memory = row.rows.batch, row.rows.settings, row.memory
    for name in _rules_of(batch.metrics, batch.scalars, settings.switched_on):
        firing = memory.of_rule(name)  # for every rule: fixes their order in the state
        if is_over and name == "breach":
            firing.go_on()
        elif not (memory.moving and name in _NOT_OF_A_MOVING_TARGET):
            firing.pass_over(1)


@lru_cache(maxsize=64)
def _rules_of(
    metrics: tuple[str, ...], scalars: tuple[str, ...], on: frozenset[str]
) -> tuple[str, ...]:
    """Return the rules that have something to say of these columns, in the order of events."""
    return tuple(
        name
        for name in SHIPPED
        if name in on
        and name != _OF_VECTORS
        and _METRICS.get(name, frozenset()).issubset(metrics)
        and (name not in _SCALARS or _SCALARS[name] in scalars)
    )


@dataclass(eq=False)
class _Group:
    """Rows of R runs whose metrics are [R, L], and the values [R, rules] to compare with limits."""

    rows: list[_Row]
    metrics: Mapping[str, Floats]
    tables: Floats  # [R, kept together, L]: advanced in place
    values: Doubles
    limits: Doubles

    def __post_init__(self) -> None:
        self.unclear = np.zeros(len(self.rows), np.bool_)
        self.rise = np.array([row.rise for row in self.rows])

    def past(self, name: str) -> Floats:
        """Return the column [R, L] of the memories."""
        column: Floats = self.tables[:, KEPT_TOGETHER.index(name)]
        return column

    def largest(self, rule: str, columns: Floats) -> None:
        """Let a rule compare the largest value over layers of each run."""
        self.values[:, _PLACE[rule]] = np.fmax.reduce(columns, axis=1)

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
        sigma, floor = self.metrics["sigma"], self.past("floor")
        now = _log(sigma + floor)
        jump: Floats = np.abs(now - self.past("newest"))
        self.past("newest")[:] = self._after_action(sigma, now, floor)
        growth = self._against_mean(now, "mean", _shares(trained, RECENT_ROWS))
        long = self._against_mean(now, "long_mean", _shares(trained, LONG_ROWS))
        self.largest("sigma_growth", growth)
        since_start = now - self.past("start")
        early = (trained < EARLY_ROWS)[:, None]
        self.largest("sigma_vs_init", np.where((long > GROWING) | early, since_start, _NAN))
        least = np.fmin.reduce(long, axis=1).astype(np.float64)
        if long.shape[1] >= LEAST_LAYERS:
            self.values[:, _PLACE["coherent_growth"]] = least
        # The median is only taken where it may lie beyond the limit.
        limit = self.limits[:, _PLACE["loss_trend"]]
        self.unclear |= (self.rise > RISING) & (np.fmax.reduce(long, axis=1) > limit)
        limit = self.limits[:, _PLACE["shrink"]]
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
        mean = self.past(name)
        apart: Floats = now - mean
        mean += shares.astype(np.float32)[:, None] * apart
        return apart

    def _norm(self) -> Floats:
        """Judge the Frobenius norms; return the change of their logarithms."""
        norm, floor = self.metrics["frobenius"], self.past("norm_floor")
        held = norm + floor
        now = _log(held.copy())
        jump: Floats = np.abs(now - self.past("newest_norm"))
        self.past("newest_norm")[:] = self._after_action(norm, now, floor)
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
            drop[idle] = gradient[idle] = _NAN
        least = np.fmin.reduce(drop, axis=1, initial=_NAN).astype(np.float64)
        least -= np.array([row.fall for row in self.rows])
        tiny = np.full(len(self.rows), -np.inf)
        if norm is not None:
            ratio = gradient / np.maximum(norm, TINY_NORM)
            smallest = np.fmin.reduce(ratio, axis=1, initial=_NAN)
            is_tiny = smallest < 1e-7
            tiny[is_tiny] = -np.log10(np.maximum(smallest[is_tiny], 1e-30)) - 7
        self.values[:, _PLACE["grad_vanish"]] = np.fmax(least, tiny)

    def _threshold(self) -> None:
        """Compare sigma with its threshold."""
        sigma, threshold = self.metrics["sigma"], self.metrics["threshold"]
        self.values[:, _PLACE["breach"]] = (sigma > threshold).sum(axis=1)
        rising = np.flatnonzero(self.rise > RISING)
        if rising.size:
            far = np.fmax.reduce(ratios(sigma[rising], threshold[rising]), axis=1)
            self.values[rising, _PLACE["breach_far"]] = far


def _log(values: Floats) -> Floats:
    np.maximum(values, SMALLEST, out=values)
    np.minimum(values, LARGEST, out=values)
    logs: Floats = np.log(values, out=values)
    return logs


def _shares(trained: npt.NDArray[np.int64], window: int) -> Doubles:
    shares: Doubles = np.where(trained <= window, 1 / (trained + 1), 1 / window)
    return shares
