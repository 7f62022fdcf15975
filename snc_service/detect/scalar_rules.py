"""Rules about the scalars of a run: loss, gradient norm and learning rate along the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from snc_service.detect.batch_columns import BatchColumns, Mask
from snc_service.detect.findings import RuleFinding, Seen, Told, count, factor, medians, number
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.detect.trends import Doubles, Trends
from snc_service.detect.value_rules import RISING


def loss_divergence(seen: Seen) -> RuleFinding | None:
    """Find losses far above their running mean, in deviations."""
    return _score(seen, "loss", "loss")


def loss_regain(seen: Seen) -> RuleFinding | None:
    """Find a smoothed loss that gives back its progress: above its best, in deviations."""
    scores = seen.scores.get("regain")
    if scores is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(scores[row])
        text = (
            f"the smoothed loss is {number(value)} deviations of a row above its best "
            f"(limit {number(limit)})"
        )
        return Told(text, value=value, limit=limit)

    return RuleFinding(scores, seen.trends.judged & ~np.isnan(scores), tell)


def grad_spike(seen: Seen) -> RuleFinding | None:
    """Find gradient norms whose logarithm is far above its running mean, in deviations."""
    return _score(seen, "grad_norm", "the gradient norm")


def _score(seen: Seen, name: str, word: str) -> RuleFinding | None:
    scores, column = seen.scores.get(name), seen.signals.scalar(name)
    if scores is None or column is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(scores[row])
        text = (
            f"{word} {number(float(column.values[row]))} is {number(value)} deviations above "
            f"its recent mean (limit {number(limit)})"
        )
        return Told(text, value=value, limit=limit)

    return RuleFinding(scores, seen.trends.judged & ~np.isnan(scores), tell)


def lr_jump(seen: Seen) -> RuleFinding | None:
    """Find learning rates far above the largest earlier one."""
    ratios = seen.scores.get("lr")
    if ratios is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(ratios[row])
        text = f"the learning rate is {number(value)} times its largest value so far"
        return Told(f"{text} (limit {number(limit)})", value=value, limit=limit)

    return RuleFinding(ratios, seen.trends.judged & ~np.isnan(ratios), tell)


def skipped_steps(seen: Seen) -> RuleFinding | None:
    """Find runs whose loss scaler goes on to skip steps, by their share of the recent ones.

    A scaler begins with a factor that is too large and skips the first steps; later it skips one
    step in some 2,000. More than that means that the gradients overflow again and again.
    """
    shares = seen.scores.get("skipped_steps")
    if shares is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(shares[row])
        text = f"{number(100 * value)} % of the recent steps were skipped"
        return Told(f"{text} (limit {number(100 * limit)} %)", value=value, limit=limit)

    return RuleFinding(shares, ~np.isnan(shares), tell)


def loss_trend(seen: Seen) -> RuleFinding | None:
    """Find the median over layers of log sigma above its long mean, while the loss rises.

    Growth of sigma alone is normal in training, and so is a loss that rises for a while. Both
    together over hundreds of steps show a slow divergence without a single faulty step.
    """
    growth, rise = seen.trends.long_growth, seen.scores.get("rise")
    if growth is None or rise is None or not growth.shape[1]:
        return None
    values = np.full(len(rise), -np.inf)
    rows = np.flatnonzero(rise > RISING)
    if rows.size:
        values[rows] = medians(growth[rows])

    def tell(row: int, limit: float) -> Told:
        most, value = int(np.nanargmax(growth[row])), float(values[row])
        layer, layers = seen.signals.layers[most], int((growth[row] > limit).sum())
        text = (
            f"the loss rose by {number(100 * float(rise[row]))} % of its size while half of the "
            f"layers are at least {factor(value)} times their mean of some 200 rows "
            f"(limit {factor(limit)})"
        )
        return Told(f"{layer}: {text}{count(layers)}", layer, layers, value, limit)

    return RuleFinding(values, seen.trends.judged & ~np.isnan(rise), tell)


def scores(
    signals: BatchColumns, memory: Memory, trends: Trends, anew: Mask, gaps: Counts
) -> dict[str, Doubles]:
    """Return the scores of loss, gradient norm and learning rate [S] and update ``memory``.

    NaN where there is none. ``rise`` is the rise of the loss above its lowest value, ``regain``
    the same in deviations, ``fall`` that of its logarithm below its mean.
    """
    found, judged = {}, trends.judged
    if (skipped := signals.scalar("skipped_steps")) is not None:
        shares = found["skipped_steps"] = np.full(len(judged), np.nan)
        for row in np.flatnonzero(skipped.finite):
            count, gap = float(skipped.values[row]), int(gaps[row])
            shares[row] = memory.skips.advance(count, gap, gap * int(trends.trained[row]))
    for name, kinds, advance in SCALARS:
        column = signals.scalar(name)
        if column is None:
            if anew.any():
                memory.forget(name)
            continue
        for kind in kinds:
            found[kind] = np.full(len(judged), 0.0 if kind == "fall" else np.nan)
        usable = judged & column.finite
        for row in np.flatnonzero(usable | anew):
            if anew[row]:
                memory.forget(name)
            if usable[row]:
                scored = advance(memory, float(column.values[row]))
                for kind, value in zip(kinds, scored, strict=True):
                    found[kind][row] = value
    moving = _moving(signals, memory)
    for name in ("loss", "regain"):
        if name in found:
            found[name][moving] = np.nan
    return found


def _moving(signals: BatchColumns, memory: Memory) -> Mask:
    """Return the rows [S] from which the job says that the target of its loss moves."""
    column = signals.scalar("moving_target")
    if column is None:
        return np.full(len(signals.rows.batch.steps), memory.moving)
    said = np.logical_or.accumulate(column.finite & (column.values > 0)) | memory.moving
    memory.moving = bool(said[-1])
    return said


def advance_loss(memory: Memory, loss: float) -> tuple[float, float, float, float]:
    """Take in a loss; return its score, rise, regain and fall: see `scores`."""
    return (
        memory.loss.score(loss, 0.02 * max(abs(loss), 0.05)),
        memory.rise.advance(loss),
        memory.regain.advance(loss),
        memory.fall.advance(loss),
    )


def advance_gradient(memory: Memory, norm: float) -> tuple[float]:
    """Take in a gradient norm; return its score."""
    return (memory.gradient.score(math.log(max(norm, 1e-20)), 0.1),)


def advance_lr(memory: Memory, rate: float) -> tuple[float]:
    """Take in a learning rate; return its ratio to the largest before it."""
    before, memory.largest_lr = memory.largest_lr, max(memory.largest_lr, rate)
    return (rate / before if before > 0 else 0.0,)


# Each scalar, the scores that it has, and the function that takes in a value of it.
SCALARS: Final[tuple[tuple[str, tuple[str, ...], Callable[..., tuple[float, ...]]], ...]] = (
    ("loss", ("loss", "rise", "regain", "fall"), advance_loss),
    ("grad_norm", ("grad_norm",), advance_gradient),
    ("lr", ("lr",), advance_lr),
)
