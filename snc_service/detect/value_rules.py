"""Rules about single values: not finite, above a threshold, or undone by the guard."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from snc_service.detect.batch_columns import BatchColumn, BatchColumns, Mask
from snc_service.detect.findings import (
    Columns,
    RuleFinding,
    Seen,
    Told,
    apart,
    count,
    everywhere,
    finite,
    largest,
    number,
)
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.detect.trends import log_norms
from snc_service.wire.batch import Floats

# A scaler that begins at 2^16 finds its factor within this many steps. If it goes on to skip, the
# gradients overflow whatever the factor.
MOST_IN_ROW = 20
RISING = 0.15  # rise of the loss, relative to its size, above which growth of sigma is no progress

# Values that must be finite, in the order in which an event picks one to name.
FINITE_METRICS = ("sigma", "grad_norm", "update_norm")
FINITE_SCALARS = ("loss", "grad_norm")


def broken(signals: BatchColumns) -> tuple[dict[str, BatchColumn], dict[str, BatchColumn]]:
    """Return the reported metrics and scalars that must be finite."""
    metrics = {n: c for n in FINITE_METRICS if (c := signals.metric(n)) is not None}
    scalars = {n: c for n in FINITE_SCALARS if (c := signals.scalar(n)) is not None}
    return metrics, scalars


def num_broken(signals: BatchColumns) -> npt.NDArray[np.int64]:
    """Return how many values of each row [S] were measured and are NaN or infinite."""
    found = np.zeros(len(signals.rows.batch.steps), np.int64)
    if signals.whole:
        return found
    metrics, scalars = broken(signals)
    for column in metrics.values():
        found += column.broken.sum(axis=1)
    for column in scalars.values():
        found += column.broken
    return found


def untouched(signals: BatchColumns, memory: Memory, num_broken: Counts) -> Mask:
    """Return the rows [S] with broken values in which every weight is what it was.

    The Frobenius norms, of the same numbers summed in the same order, show it bit for bit. More
    than `MOST_IN_ROW` such rows in a row are not a scaler that looks for its factor.
    """
    skipped = np.zeros(len(num_broken), np.bool_)
    norm, sigma = signals.metric("frobenius"), signals.metric("sigma")
    if not num_broken.any() or norm is None:
        memory.skipped_in_row = 0 if not num_broken.all() else memory.skipped_in_row
        return skipped
    known: Floats | None = None
    now = log_norms(signals, memory)
    weights = [column for column in (norm, sigma) if column is not None]
    spoilt = np.logical_or.reduce([column.broken.any(axis=1) for column in weights])
    for row, broken in enumerate((num_broken > 0).tolist()):
        if not broken:
            known, memory.skipped_in_row = now[row], 0
            continue
        places = memory.places(tuple(signals.layers))
        before = memory.columns["newest_norm"][places]
        reference = before if known is None else known
        measured = ~np.isnan(reference) & ~np.isnan(now[row])
        same = not spoilt[row] and bool(
            measured.any() and np.array_equal(now[row][measured], reference[measured])
        )
        memory.skipped_in_row = memory.skipped_in_row + 1 if same else MOST_IN_ROW
        skipped[row] = memory.skipped_in_row <= MOST_IN_ROW and same
    return skipped


def nonfinite(seen: Seen) -> RuleFinding:
    """Count values that were measured and are NaN or infinite."""
    found = seen.num_broken.astype(np.float64)
    return RuleFinding(found, everywhere(seen), partial(_tell_nonfinite, seen.signals))


def _tell_nonfinite(signals: BatchColumns, row: int, limit: float) -> Told:
    metrics, scalars = broken(signals)
    parts, layer, layers = [], None, 0
    hit = {name: np.flatnonzero(column.broken[row]) for name, column in metrics.items()}
    name = next((name for name, where in hit.items() if where.size), None)
    if name is not None:
        first = int(hit[name][0])
        layer = signals.layers[first]
        layers = int(np.unique(np.concatenate(list(hit.values()))).size)
        word = number(float(metrics[name].values[row, first]))
        parts.append(f"{layer}: {name} is {word}{count(layers)}")
    for name, column in scalars.items():
        if column.broken[row]:
            parts.append(f"{name} is {number(float(column.values[row]))}")
    return Told("; ".join(parts), layer, layers)


def breach(seen: Seen) -> RuleFinding | None:
    """Count layers whose sigma exceeds its threshold, compared in float32 as on the device."""
    sigma, threshold = seen.signals.metric("sigma"), seen.signals.metric("threshold")
    if sigma is None or threshold is None:
        return None
    # False wherever one of the two is NaN or was not measured.
    over: Mask = np.greater(sigma.values, threshold.values)
    tell = partial(_tell_breach, seen.signals, sigma.values, threshold.values, over)
    columns = ratios(sigma.values, threshold.values)
    return RuleFinding(over.sum(axis=1).astype(np.float64), everywhere(seen), tell, columns)


def ratios(sigma: Columns, threshold: Columns) -> Floats:
    """Return sigma over threshold; a hostile threshold may be 0, infinite or missing."""
    with np.errstate(all="ignore"):
        ratio: Floats = np.where(threshold > 0, sigma / threshold, np.float32(np.nan))
        return ratio


def breach_far(seen: Seen) -> RuleFinding | None:
    """Find the largest sigma over its threshold while the smoothed loss rises.

    A breach begins small, and its event with it. This one says that it went on to matter.
    """
    sigma, threshold = seen.signals.metric("sigma"), seen.signals.metric("threshold")
    rise = seen.scores.get("rise")
    if sigma is None or threshold is None or rise is None:
        return None
    ratio = ratios(sigma.values, threshold.values)
    ratio[~(rise > RISING)] = np.nan

    def say(value: float, limit: float) -> str:
        return (
            f"sigma is {number(value)} times its threshold while the loss rises "
            f"(limit {number(limit)})"
        )

    return largest(seen, ratio, say)


def _tell_breach(
    signals: BatchColumns, sigma: Columns, threshold: Columns, over: Mask, row: int, limit: float
) -> Told:
    where = np.flatnonzero(over[row])
    with np.errstate(all="ignore"):  # a hostile threshold may be 0 or infinite
        ratio = sigma[row, where] / threshold[row, where].astype(np.float64)
    worst = int(where[np.argmax(ratio)])
    value, held = float(sigma[row, worst]), float(threshold[row, worst])
    text, held_text = apart(value, held)
    scale = signals.metric("scale")
    acted = scale is not None and scale.values[row, worst] < 1  # rescale, cap or normalize
    message = (
        f"{signals.layers[worst]}: sigma {text} exceeds its threshold {held_text}"
        f"{count(where.size)}{' and was held' if acted else ''}"
    )
    return Told(message, signals.layers[worst], int(where.size), finite(value), finite(held))


def guard(seen: Seen) -> RuleFinding | None:
    """Count steps that the client's guard undid."""
    return _undone(seen, "guard_vetoes", "the guard undid")


def guard_rollback(seen: Seen) -> RuleFinding | None:
    """Count returns of the client's guard to an older copy of the weights."""
    return _undone(seen, "guard_rollbacks", "the guard rolled the weights back after")


def _undone(seen: Seen, name: str, word: str) -> RuleFinding | None:
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
        text = f"{layer} went {number(far)} times as far as it may{count(layers)}"
        return Told(f"{said}: {text}", layer, layers, value, limit)

    return RuleFinding(counts.astype(np.float64), everywhere(seen), tell)
