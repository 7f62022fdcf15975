"""How the layers move: each row against the layer's own past, float32 [S, L] columns.

Registration, floors and recursions are those of the project's note on detection: a layer born at
zero gets a floor, or every relative measure of it would explode in the first steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.memory import Floats, Memory
from snc_service.detect.signals import Column, Mask, Signals

LEAST_SIGMA = 1e-3  # a registered sigma below it counts as this
BORN_AT_ZERO = 0.02  # of the median registered sigma: below it a layer was initialised to zero
FLOOR = 0.5  # of the median, for such layers
TINY_GRADIENT = 1e-20

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trends:
    """Columns [S, L], NaN where there is nothing to compare; None: not reported in this batch."""

    judged: Mask  # [S] rows of training in which everything measured is finite
    trained: npt.NDArray[np.int64]  # [S] training rows before this one
    jump: Floats | None = None  # |log sigma - log sigma of the row before|
    growth: Floats | None = None  # log sigma - its running mean
    since_start: Floats | None = None  # log sigma - its registered value
    update_ratio: Doubles | None = None  # update norm / Frobenius norm
    gradient_drop: Floats | None = None  # running mean of log gradient norm - the newest
    gradient_ratio: Doubles | None = None  # gradient norm / Frobenius norm


def follow(signals: Signals, memory: Memory, finite: Mask, *, begins: bool) -> Trends:
    """Return the trends of S rows and move ``memory`` past them.

    Rows that are not ``finite`` [S] change nothing. Where the run or attempt ``begins``, a first
    row that only registers sigma, before training starts, is no training row.
    """
    places = memory.places(tuple(signals.layers))
    past = {name: column[places] for name, column in memory.columns.items()}
    training = np.ones(len(finite), np.bool_)
    training[0] = not (begins and _only_sigma(signals))
    trained = memory.trained + np.cumsum(training) - training
    memory.trained += int(training.sum())
    judged = training & finite
    norm = _doubles(signals.metric("frobenius"))
    found = {
        **_of_sigma(signals, past, judged, trained),
        **_of_update(signals, past, judged, norm),
        **_of_gradient(signals, past, judged, norm),
    }
    for name, column in past.items():
        memory.columns[name][places] = column
    return Trends(judged, trained, **found)  # type: ignore[arg-type] # by name


def _only_sigma(signals: Signals) -> bool:
    """Return whether the first row carries sigma and no sign of a training step."""
    others = [signals.metric(name) for name in ("grad_norm", "update_norm")]
    scalars = [signals.scalar(name) for name in ("loss", "lr", "grad_norm")]
    return not any(c is not None and c.measured[0].any() for c in (*others, *scalars))


def _doubles(column: Column | None) -> Doubles | None:
    """Return the values in float64, NaN where there is no finite one."""
    if column is None:
        return None
    return np.where(np.isfinite(column.values), column.values, np.nan).astype(np.float64)


def _of_sigma(
    signals: Signals, past: dict[str, Floats], judged: Mask, trained: npt.NDArray[np.int64]
) -> dict[str, Floats]:
    sigma = _doubles(signals.metric("sigma"))
    if sigma is None:
        return {}
    _register(sigma, past)
    now = np.log(np.maximum(sigma + past["floor"], 1e-6)).astype(np.float32)
    after = _after_action(signals, sigma, now, past["floor"])
    jump, growth = np.full(now.shape, np.nan, np.float32), np.full(now.shape, np.nan, np.float32)
    newest, mean, skipped = past["newest"], past["mean"], np.nan_to_num(past["skipped"])
    seen = ~np.isnan(now)
    for row in np.flatnonzero(judged):
        jump[row] = np.abs(now[row] - newest)
        if skipped.any():
            jump[row] /= 1 + skipped
        newest = _moved(seen[row], after[row], newest)
        skipped = _moved(seen[row], np.zeros_like(skipped), skipped + np.float32(1))
        mean = _begun(mean, now[row])
        growth[row] = now[row] - mean
        share = np.float32(1 / (trained[row] + 1) if trained[row] <= 50 else 0.02)
        mean = _moved(seen[row], mean + share * growth[row], mean)
    past["newest"], past["mean"] = newest, mean
    past["skipped"] = np.where(skipped > 0, skipped, np.float32(np.nan))
    since_start = np.where(judged[:, None], now - past["start"], np.float32(np.nan))
    return {"jump": jump, "growth": growth, "since_start": since_start}


def _moved(seen: Mask, to: Floats, old: Floats) -> Floats:
    """Return ``to`` for the layers that were measured, ``old`` for the others [L]."""
    return to if seen.all() else np.where(seen, to, old)


def _begun(mean: Floats, now: Floats) -> Floats:
    """Return ``mean``, begun with ``now`` where there is none yet [L]."""
    unknown = np.isnan(mean)
    return np.where(unknown, now, mean) if unknown.any() else mean


def _register(sigma: Doubles, past: dict[str, Floats]) -> None:
    """Register each layer at its first finite sigma, with a floor if it was born at zero."""
    start, floor = past["start"], past["floor"]
    for row, new in _first_rows(sigma, np.isnan(start)):
        size = np.exp(start.astype(np.float64)) - floor  # of the layers registered before
        size[new] = np.maximum(sigma[row, new], LEAST_SIGMA)
        median = np.nanmedian(size)
        floor[new] = np.where(size[new] < BORN_AT_ZERO * median, FLOOR * median, 0.0)
        start[new] = np.log(size[new] + floor[new])
        past["newest"][new] = start[new]


def _first_rows(values: Doubles, missing: Mask) -> list[tuple[int, Mask]]:
    """Return (row, layers) for the ``missing`` layers whose first value is in that row."""
    if not missing.any():
        return []
    there = ~np.isnan(values)
    first = np.where(missing & there.any(axis=0), there.argmax(axis=0), -1)
    return [(int(row), first == row) for row in np.unique(first) if row >= 0]


def _after_action(signals: Signals, sigma: Doubles, now: Floats, floor: Floats) -> Floats:
    """Return log sigma after a rescale: the next row must not take our own action for a jump."""
    scale = _doubles(signals.metric("scale"))
    if scale is None:
        return now
    scale = np.where((scale > 0) & (scale < 1), scale, 1.0)
    return np.log(np.maximum(scale * sigma + floor, 1e-6)).astype(np.float32)


def _of_update(
    signals: Signals, past: dict[str, Floats], judged: Mask, norm: Doubles | None
) -> dict[str, Doubles]:
    update = _doubles(signals.metric("update_norm"))
    if update is None or norm is None:
        return {}
    norm_floor = past["norm_floor"]
    norm_in_rows = np.where(judged[:, None], norm, np.nan)
    for row, new in _first_rows(norm_in_rows, np.isnan(norm_floor)):
        median = np.nanmedian(norm_in_rows[row])
        norm_floor[new] = np.where(past["floor"][new] > 0, FLOOR * median, 0.0)
    return {"update_ratio": update / np.maximum(norm_in_rows + norm_floor, 1e-9)}


def _of_gradient(
    signals: Signals, past: dict[str, Floats], judged: Mask, norm: Doubles | None
) -> dict[str, npt.NDArray[np.floating]]:
    gradient = _doubles(signals.metric("grad_norm"))
    if gradient is None:
        return {}
    gradient = np.where(judged[:, None], np.maximum(gradient, TINY_GRADIENT), np.nan)
    now = np.log(gradient).astype(np.float32)
    drop = np.full(now.shape, np.nan, np.float32)
    mean = past["gradient"]
    seen = ~np.isnan(now)
    for row in np.flatnonzero(judged):
        mean = _begun(mean, now[row])
        drop[row] = mean - now[row]
        mean = _moved(seen[row], mean - np.float32(0.02) * drop[row], mean)
    past["gradient"] = mean
    found: dict[str, npt.NDArray[np.floating]] = {"gradient_drop": drop}
    if norm is not None:
        found["gradient_ratio"] = gradient / np.maximum(norm, 1e-9)
    return found
