"""What each rule looks at, and the sentence it says: one function per rule, over S rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.signals import Column, Mask, Signals
from snc_service.detect.trends import Doubles, Trends

# What must be finite, in the order in which an event looks for the one to name.
FINITE_METRICS = ("sigma", "grad_norm", "update_norm")
FINITE_SCALARS = ("loss", "grad_norm")


@dataclass(frozen=True)
class Told:
    """The part of an event that only its rule knows: a sentence, and the worst layer in numbers."""

    message: str
    layer: str | None = None
    layers: int = 0
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """What a rule saw: ``values`` [S] to compare with its limit, in the rows that are ``judged``.

    ``tell`` puts one row, which exceeded the limit, into words.
    """

    values: Doubles
    judged: Mask
    tell: Callable[[int, float], Told]


@dataclass(frozen=True, eq=False)
class Seen:
    """Everything that a rule may look at."""

    signals: Signals
    trends: Trends
    gaps: npt.NDArray[np.int64]  # [S] steps since the row before
    scores: Mapping[str, Doubles]  # [S] of loss, grad_norm and lr; NaN where there is none


Look: TypeAlias = Callable[[Seen], Finding | None]
Columns: TypeAlias = npt.NDArray[np.floating[Any]]


def broken(signals: Signals) -> tuple[dict[str, Column], dict[str, Column]]:
    """Return the metrics and the scalars that must be finite, as far as they came."""
    metrics = {n: c for n in FINITE_METRICS if (c := signals.metric(n)) is not None}
    scalars = {n: c for n in FINITE_SCALARS if (c := signals.scalar(n)) is not None}
    return metrics, scalars


def num_broken(signals: Signals) -> npt.NDArray[np.int64]:
    """Return how many values of each row [S] were measured and are NaN or infinite."""
    metrics, scalars = broken(signals)
    found = np.zeros(len(signals.rows.batch.steps), np.int64)
    for column in metrics.values():
        found += column.broken.sum(axis=1)
    for column in scalars.values():
        found += column.broken
    return found


def nonfinite(seen: Seen) -> Finding:
    """Count values that were measured and are NaN or infinite."""
    found = num_broken(seen.signals)
    return Finding(found.astype(np.float64), _all(seen), partial(_tell_nonfinite, seen.signals))


def _tell_nonfinite(signals: Signals, row: int, limit: float) -> Told:
    metrics, scalars = broken(signals)
    parts, layer, layers = [], None, 0
    hit = {name: np.flatnonzero(column.broken[row]) for name, column in metrics.items()}
    name = next((name for name, where in hit.items() if where.size), None)
    if name is not None:
        first = int(hit[name][0])
        layer = signals.layers[first]
        layers = int(np.unique(np.concatenate(list(hit.values()))).size)
        word = _number(float(metrics[name].values[row, first]))
        parts.append(f"{layer}: {name} is {word}{_count(layers)}")
    for name, column in scalars.items():
        if column.broken[row]:
            parts.append(f"{name} is {_number(float(column.values[row]))}")
    return Told("; ".join(parts), layer, layers)


def breach(seen: Seen) -> Finding | None:
    """Count layers whose sigma exceeds its threshold, compared in float32 as on the device."""
    sigma, threshold = seen.signals.metric("sigma"), seen.signals.metric("threshold")
    if sigma is None or threshold is None:
        return None
    # False wherever one of the two is NaN or was not measured.
    over: Mask = np.greater(sigma.values, threshold.values)
    tell = partial(_tell_breach, seen.signals, sigma.values, threshold.values, over)
    return Finding(over.sum(axis=1).astype(np.float64), _all(seen), tell)


def _tell_breach(
    signals: Signals, sigma: Columns, threshold: Columns, over: Mask, row: int, limit: float
) -> Told:
    where = np.flatnonzero(over[row])
    with np.errstate(all="ignore"):  # a hostile threshold may be 0 or infinite
        ratio = sigma[row, where] / threshold[row, where].astype(np.float64)
    worst = int(where[np.argmax(ratio)])
    value, held = float(sigma[row, worst]), float(threshold[row, worst])
    text, held_text = _apart(value, held)
    scale = signals.metric("scale")
    rescaled = scale is not None and scale.values[row, worst] < 1
    message = (
        f"{signals.layers[worst]}: sigma {text} exceeds its threshold {held_text}"
        f"{_count(where.size)}{' and was rescaled' if rescaled else ''}"
    )
    return Told(message, signals.layers[worst], int(where.size), _finite(value), _finite(held))


def sigma_jump(seen: Seen) -> Finding | None:
    """Find the largest change of log sigma in one step; over k steps a random walk goes sqrt k."""
    jump = seen.trends.jump
    if jump is None:
        return None
    per_step = jump / np.sqrt(seen.gaps)[:, None]
    return _largest(
        seen,
        per_step,
        lambda value, limit: (
            f"sigma changed by a factor of {_number(math.exp(value))} in one step "
            f"(limit {_number(math.exp(limit))})"
        ),
    )


def sigma_growth(seen: Seen) -> Finding | None:
    """Find the largest log sigma above its own running mean."""
    return _largest(
        seen,
        seen.trends.growth,
        lambda value, limit: (
            f"sigma is {_number(math.exp(value))} times its recent mean "
            f"(limit {_number(math.exp(limit))})"
        ),
    )


def sigma_vs_init(seen: Seen) -> Finding | None:
    """Find the largest log sigma above the value it was registered with."""
    return _largest(
        seen,
        seen.trends.since_start,
        lambda value, limit: (
            f"sigma is {_number(math.exp(value))} times its value at the start "
            f"(limit {_number(math.exp(limit))})"
        ),
    )


def update_ratio(seen: Seen) -> Finding | None:
    """Find the largest update norm over Frobenius norm."""
    return _largest(
        seen,
        seen.trends.update_ratio,
        lambda value, limit: (
            f"one step moved the weight by {_number(100 * value)} % of its norm "
            f"(limit {_number(100 * limit)} %)"
        ),
    )


def grad_vanish(seen: Seen) -> Finding | None:
    """Find gradients that fell in all layers, or are almost nothing beside the weight in one.

    In natural logarithms for the fall of the layer that fell least; in decimal ones below 1e-7 for
    gradient norm over Frobenius norm of the layer where that is smallest.
    """
    drop, ratio = seen.trends.gradient_drop, seen.trends.gradient_ratio
    if drop is None:
        return None
    least = np.fmin.reduce(drop, axis=1, initial=np.nan).astype(np.float64)
    tiny = np.full(len(least), -np.inf)
    if ratio is not None:
        smallest = np.fmin.reduce(ratio, axis=1, initial=np.nan)
        is_tiny = smallest < 1e-7
        tiny[is_tiny] = -np.log10(np.maximum(smallest[is_tiny], 1e-30)) - 7
    tell = partial(_tell_vanish, seen.signals, drop, ratio, least, tiny)
    return Finding(np.fmax(least, tiny), seen.trends.judged, tell)


def _tell_vanish(
    signals: Signals,
    drop: Columns,
    ratio: Columns | None,
    least: Doubles,
    tiny: Doubles,
    row: int,
    limit: float,
) -> Told:
    if ratio is not None and not tiny[row] < least[row]:
        worst = int(np.nanargmin(ratio[row]))
        layer, value = signals.layers[worst], float(tiny[row])
        text = f"{layer}: the gradient is {ratio[row, worst]:.2g} of the weight's norm"
        return Told(text, layer, int((ratio[row] < 10 ** -(7 + limit)).sum()), value, limit)
    worst = int(np.nanargmin(drop[row]))
    layer, value = signals.layers[worst], float(least[row])
    layers = int((~np.isnan(drop[row])).sum())
    text = f"the gradients of all layers fell below 1/{_number(math.exp(value))} of their mean"
    return Told(f"{layer}: {text}{_count(layers)}", layer, layers, value, limit)


def loss_divergence(seen: Seen) -> Finding | None:
    """Find losses far above their running mean, in deviations."""
    return _score(seen, "loss", "loss")


def grad_spike(seen: Seen) -> Finding | None:
    """Find gradient norms whose logarithm is far above its running mean, in deviations."""
    return _score(seen, "grad_norm", "the gradient norm")


def _score(seen: Seen, name: str, word: str) -> Finding | None:
    scores, column = seen.scores.get(name), seen.signals.scalar(name)
    if scores is None or column is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(scores[row])
        text = (
            f"{word} {_number(float(column.values[row]))} is {_number(value)} deviations above "
            f"its recent mean (limit {_number(limit)})"
        )
        return Told(text, value=value, limit=limit)

    return Finding(scores, seen.trends.judged & ~np.isnan(scores), tell)


def lr_jump(seen: Seen) -> Finding | None:
    """Find learning rates far above the largest one before."""
    ratios = seen.scores.get("lr")
    if ratios is None:
        return None

    def tell(row: int, limit: float) -> Told:
        value = float(ratios[row])
        text = f"the learning rate is {_number(value)} times its largest value so far"
        return Told(f"{text} (limit {_number(limit)})", value=value, limit=limit)

    return Finding(ratios, seen.trends.judged & ~np.isnan(ratios), tell)


def guard(seen: Seen) -> Finding | None:
    """Count steps that the client's guard undid."""
    return _undone(seen, "guard_vetoes", "the guard undid")


def guard_rollback(seen: Seen) -> Finding | None:
    """Count returns of the client's guard to an older copy of the weights."""
    return _undone(seen, "guard_rollbacks", "the guard rolled the weights back after")


def _undone(seen: Seen, name: str, word: str) -> Finding | None:
    column = seen.signals.scalar(name)
    if column is None:
        return None
    counts = np.where(column.measured & np.isfinite(column.values), column.values, 0.0)
    strain = seen.signals.metric("guard")

    def tell(row: int, limit: float) -> Told:
        said, value = f"{word} step {seen.signals.rows.batch.steps[row]}", float(counts[row])
        if strain is None or np.isnan(strain.values[row]).all():
            return Told(said, value=value, limit=limit)
        worst, layers = int(np.nanargmax(strain.values[row])), int((strain.values[row] > 1).sum())
        layer, far = seen.signals.layers[worst], float(strain.values[row, worst])
        text = f"{layer} went {_number(far)} times as far as it may{_count(layers)}"
        return Told(f"{said}: {text}", layer, layers, value, limit)

    return Finding(counts.astype(np.float64), _all(seen), tell)


def _largest(
    seen: Seen, columns: Columns | None, say: Callable[[float, float], str]
) -> Finding | None:
    """Compare the largest value over layers, and name the layer that has it."""
    if columns is None or not columns.shape[1]:
        return None

    def tell(row: int, limit: float) -> Told:
        worst = int(np.nanargmax(columns[row]))
        layer, value = seen.signals.layers[worst], float(columns[row, worst])
        layers = int((columns[row] > limit).sum())
        return Told(f"{layer}: {say(value, limit)}{_count(layers)}", layer, layers, value, limit)

    values = np.fmax.reduce(columns, axis=1).astype(np.float64)
    return Finding(values, seen.trends.judged, tell)


def _all(seen: Seen) -> Mask:
    return np.ones(len(seen.gaps), np.bool_)


def _count(layers: int) -> str:
    return f" ({layers} layers)" if layers > 1 else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:#.{digits}g}".rstrip(".")


def _apart(value: float, limit: float) -> Sequence[str]:
    """Return both numbers with as many digits as it takes to tell them apart."""
    for digits in range(3, 10):  # float32 values differ within 9 digits
        texts = _number(value, digits), _number(limit, digits)
        if texts[0] != texts[1]:
            break
    return texts
