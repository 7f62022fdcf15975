"""The rules: streaming detectors over the rows of a run, and the one place that decides an event.

A rule looks at all layers at once and raises one event per incident, not one per layer: at the
first row that fires, and again only after more than 50 quiet rows. Rows that are several steps
apart count in steps. Everything here is pure: live ingest, a replay after a crash and a test call
the same `advance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from snc_service.detect.memory import REST_ROWS, Firing, Memory
from snc_service.detect.signals import Column, Mask, Signals
from snc_service.store.protocol import Event, Rows, Severity


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
    """What a rule saw in S rows: the rows ``above`` its limit [S], and how to tell one of them."""

    above: Mask
    tell: Callable[[int], Told]


Look: TypeAlias = Callable[[Signals], Finding | None]


@dataclass(frozen=True)
class Rule:
    """A detector: ``look`` returns None where the batch lacks what the rule needs.

    ``hold`` is the number of rows in a row, one step apart, that must be above the limit.
    """

    name: str
    severity: Severity
    look: Look
    hold: int = 1


def advance(
    state: bytes | None, rows: Rows, rules: Sequence[Rule] | None = None
) -> tuple[bytes, list[Event]]:
    """Return the state after ``rows`` and the events they raise, in row order.

    However the rows of a run are cut into batches, the events are the same. ``rules`` is `RULES`
    unless a backtest brings its own. Cost: one pass over the batch; the state has a few hundred
    bytes.
    """
    memory = Memory.load(state)
    if rows.new_attempt:
        memory.restart()
    stride = memory.stride(rows.batch.steps)
    rest = np.minimum(REST_ROWS, np.maximum(5, REST_ROWS // stride))
    signals = Signals(rows)
    found: list[tuple[int, Event]] = []
    for rule in RULES if rules is None else rules:
        finding = rule.look(signals)
        if finding is not None:
            firing = memory.firing.setdefault(rule.name, Firing())
            hold = -(-rule.hold // stride)
            for row in firing.edges(finding.above, hold, rest):
                found.append((row, _event(rule, rows.batch.steps[row], finding.tell(row))))
    found.sort(key=lambda pair: pair[0])
    return memory.dump(), [event for _, event in found]


def _event(rule: Rule, step: int, told: Told) -> Event:
    return Event(
        step=step,
        rule=rule.name,
        severity=rule.severity,
        message=told.message,
        layer=told.layer,
        layers=told.layers,
        value=told.value,
        limit=told.limit,
    )


# What must be finite, in the order in which an event looks for the one to name.
FINITE_METRICS = ("sigma", "grad_norm", "update_norm")
FINITE_SCALARS = ("loss", "grad_norm")


def nonfinite(signals: Signals) -> Finding | None:
    """Find rows in which a value was measured and is NaN or infinite."""
    metrics = _broken(FINITE_METRICS, signals.metric)
    scalars = _broken(FINITE_SCALARS, signals.scalar)
    if not metrics and not scalars:
        return None
    above = np.zeros(len(signals.rows.batch.steps), np.bool_)
    for column in metrics.values():
        above |= column.broken.any(axis=1)
    for column in scalars.values():
        above |= column.broken
    return Finding(above, lambda row: _tell_nonfinite(signals, metrics, scalars, row))


def _broken(names: Sequence[str], get: Callable[[str], Column | None]) -> dict[str, Column]:
    return {name: column for name in names if (column := get(name)) is not None}


def _tell_nonfinite(
    signals: Signals, metrics: dict[str, Column], scalars: dict[str, Column], row: int
) -> Told:
    parts, layer, layers = [], None, 0
    hit = {name: np.flatnonzero(column.broken[row]) for name, column in metrics.items()}
    name = next((name for name, where in hit.items() if where.size), None)
    if name is not None:
        first = int(hit[name][0])
        layer = signals.layers[first]
        layers = int(np.unique(np.concatenate(list(hit.values()))).size)
        value = metrics[name].values[row, first]
        parts.append(f"{layer}: {name} is {_number(value)}{_count(layers)}")
    for name, column in scalars.items():
        if column.broken[row]:
            parts.append(f"{name} is {_number(column.values[row])}")
    return Told("; ".join(parts), layer, layers)


def breach(signals: Signals) -> Finding | None:
    """Find rows in which some sigma exceeds its threshold, compared in float32 as on the device."""
    sigma, threshold = signals.metric("sigma"), signals.metric("threshold")
    if sigma is None or threshold is None:
        return None
    # False wherever one of the two is NaN or was not measured.
    over: Mask = np.greater(sigma.values, threshold.values)
    return Finding(
        np.logical_or.reduce(over, axis=1), lambda row: _tell_breach(signals, over[row], row)
    )


def _tell_breach(signals: Signals, over: Mask, row: int) -> Told:
    where = np.flatnonzero(over)
    sigma, threshold = signals.metric("sigma"), signals.metric("threshold")
    assert sigma is not None
    assert threshold is not None
    with np.errstate(all="ignore"):  # a hostile threshold may be 0 or infinite
        ratio = sigma.values[row, where] / threshold.values[row, where].astype(np.float64)
    worst = int(where[np.argmax(ratio)])
    value, limit = float(sigma.values[row, worst]), float(threshold.values[row, worst])
    text, limit_text = _apart(value, limit)
    scale = signals.metric("scale")
    rescaled = scale is not None and scale.values[row, worst] < 1
    message = (
        f"{signals.layers[worst]}: sigma {text} exceeds its threshold {limit_text}"
        f"{_count(where.size)}{' and was rescaled' if rescaled else ''}"
    )
    return Told(message, signals.layers[worst], int(where.size), _finite(value), _finite(limit))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _count(layers: int) -> str:
    return f" ({layers} layers)" if layers > 1 else ""


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:#.{digits}g}".rstrip(".")


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Return both numbers with as many digits as it takes to tell them apart."""
    for digits in range(3, 10):  # float32 values differ within 9 digits
        texts = _number(value, digits), _number(limit, digits)
        if texts[0] != texts[1]:
            break
    return texts


RULES: tuple[Rule, ...] = (
    Rule("nonfinite", "critical", nonfinite),
    Rule("breach", "warning", breach),
)
