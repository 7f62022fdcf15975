"""Trends of the layers: each row against the layer's own past, float32 [S, L] columns.

A layer initialised to zero gets a floor, else its relative changes would be huge in the first
steps. Values that do not depend on the row before are computed for all rows at once. The running
means do depend on it; they take a few operations of length L per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.batch_columns import BatchColumns, Mask
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.wire.batch import Floats

LONGEST_TURN = 50  # rows that a layer may go unmeasured; after them it counts as gone
LEAST_SIGMA = 1e-3  # the least registered sigma
BORN_AT_ZERO = 0.02  # of the median registered sigma; a layer below it was initialised to zero
FLOOR = 0.5  # of the median, for such layers
SMALLEST, LARGEST = np.float32(1e-6), np.float32(1e38)  # the range of arguments of the logarithm
TINY_NORM = np.float32(1e-9)
SAME = np.float32(1e-6)  # change of log sigma that its last digits make
TINY_GRADIENT = np.float32(1e-20)
NAN = np.float32(np.nan)
RECENT_ROWS, LONG_ROWS = 50, 200  # windows of the running means of log sigma

Doubles: TypeAlias = npt.NDArray[np.float64]
Past: TypeAlias = dict[str, Floats]


@dataclass(frozen=True, eq=False)
class Trends:
    """Columns [S, L], NaN where there is nothing to compare. None: not reported in this batch."""

    judged: Mask  # [S] training rows whose measured values are all finite
    trained: Counts  # [S] training rows before this one
    jump: Floats | None = None  # |log sigma - log sigma of the row before|
    norm_jump: Floats | None = None  # the same for the Frobenius norm
    growth: Floats | None = None  # log sigma - its running mean
    long_growth: Floats | None = None  # log sigma - its running mean over 200 rows
    since_start: Floats | None = None  # log sigma - its registered value
    update_ratio: Floats | None = None  # update norm / Frobenius norm
    gradient_drop: Floats | None = None  # running mean of log gradient norm - the newest
    gradient_ratio: Floats | None = None  # gradient norm / Frobenius norm
    vector_growth: Floats | None = None  # log norm of what has no sigma - its mean over 200 rows
    still: Floats | None = None  # rows in which the weight has not changed despite its gradient


def follow(
    signals: BatchColumns, memory: Memory, finite: Mask, anew: Mask, *, begins: bool
) -> Trends:
    """Return the trends of S rows and advance ``memory`` over them.

    Rows that are not ``finite`` [S] change nothing. Running means restart in the ``anew`` rows [S].
    Where the run or attempt ``begins``, a first row with sigma alone registers sigma and does not
    count as a training row.
    """
    layers = tuple(signals.layers)
    places = None if memory.covers(layers) else memory.places(layers)
    past = (
        dict(memory.columns)
        if places is None
        else {name: column[places] for name, column in memory.columns.items()}
    )
    training = np.ones(len(finite), np.bool_)
    training[0] = not (begins and _only_sigma(signals))
    trained = memory.trained + np.cumsum(training) - training
    memory.trained += int(training.sum())
    judged = training & finite
    with np.errstate(over="ignore", invalid="ignore"):  # hostile rows may overflow
        known_from = _register(signals, past)
        found = {
            **(of_sigma := _of_sigma(signals, past, known_from, judged, anew, trained)),
            **_of_norm(signals, of_sigma.get("jump"), past, known_from, judged, anew, trained),
            **_of_gradient(signals, past, judged, anew),
        }
    for name, column in past.items():
        if places is not None:
            memory.columns[name][places] = column
        else:  # a view would keep the whole batch in memory
            memory.columns[name] = column if column.base is None else column.copy()
    return Trends(judged, trained, **found)


def _only_sigma(signals: BatchColumns) -> bool:
    """Return whether the first row has sigma and no sign of a training step."""
    others = [signals.metric(name) for name in ("grad_norm", "update_norm")]
    scalars = [signals.scalar(name) for name in ("loss", "lr", "grad_norm")]
    return not any(c is not None and c.measured[0].any() for c in (*others, *scalars))


def _of_sigma(
    signals: BatchColumns, past: Past, known_from: Counts, judged: Mask, anew: Mask, trained: Counts
) -> Mapping[str, Floats]:
    column = signals.metric("sigma")
    if column is None:
        return {}
    sigma = column.known
    now = _log(sigma + past["floor"])
    after = _after_action(signals, sigma, now, past["floor"])
    is_whole = column.whole and bool(judged.all()) and not anew.any()
    jump, now = _jumps(now, after, past, known_from, judged, is_whole)
    recent = np.where(trained <= RECENT_ROWS, 1 / (trained + 1), 1 / RECENT_ROWS)
    long = np.where(trained <= LONG_ROWS, 1 / (trained + 1), 1 / LONG_ROWS)
    growth, past["mean"] = _against_mean(now, past["mean"], judged, anew, recent, is_whole)
    long_growth, past["long_mean"] = _against_mean(
        now, past["long_mean"], judged, anew, long, is_whole
    )
    since_start = now - past["start"]
    if not is_whole and not judged.all():
        since_start[~judged] = NAN
    return {
        "jump": jump,
        "growth": growth,
        "long_growth": long_growth,
        "since_start": since_start,
    }


def _log(values: Floats) -> Floats:
    """Return the logarithm after clipping the values to a range where it is finite."""
    np.maximum(values, SMALLEST, out=values)
    np.minimum(values, LARGEST, out=values)
    logs: Floats = np.log(values, out=values)
    return logs


def _jumps(
    now: Floats, after: Floats, past: Past, known_from: Counts, judged: Mask, is_whole: bool
) -> tuple[Floats, Floats]:
    """Return the change of each layer since its last measurement, per row in between; and ``now``.

    In the returned ``now`` an unmeasured layer keeps its last value. Otherwise a rule over all
    layers or several rows would cover only the layers measured in that row. Before the row
    ``known_from`` [L] a layer has no value to keep.
    """
    newest, skipped = past["newest"], past["skipped"]
    is_whole = is_whole or (bool(judged.all()) and not np.isnan(now).any())
    if is_whole and np.isnan(skipped).all():
        jump = np.empty_like(now)
        np.subtract(now[0], newest, out=jump[0])
        np.subtract(now[1:], after[:-1], out=jump[1:])
        past["newest"] = after[-1]
        return np.abs(jump, out=jump), now
    jump, skipped, held = np.full(now.shape, NAN), np.nan_to_num(skipped), now.copy()
    for row in np.flatnonzero(judged):
        seen = ~np.isnan(now[row])
        jump[row] = np.abs(now[row] - newest) / (1 + skipped)
        seen_or_gone = seen | (skipped >= LONGEST_TURN) | (row < known_from)
        held[row] = np.where(seen_or_gone, now[row], newest)
        newest = np.where(seen, after[row], newest)
        skipped = np.where(seen, np.float32(0), skipped + np.float32(1))
    past["newest"], past["skipped"] = newest, np.where(skipped > 0, skipped, NAN)
    return jump, held


def _against_mean(
    now: Floats, mean: Floats, judged: Mask, anew: Mask, shares: Doubles, is_whole: bool = False
) -> tuple[Floats, Floats]:
    """Return ``now`` [S, L] above its running mean, and the mean after the last row [L].

    The mean starts at a layer's first value; each later value enters with the weight ``shares``
    [S]. A row that is not ``judged`` and a layer that was not measured change nothing. ``anew``
    restarts the mean. ``is_whole``: the caller knows that all rows are judged and measured.
    """
    weights = shares.astype(np.float32)
    if is_whole or (judged.all() and not anew.any() and not np.isnan(now).any()):
        return _against_whole(now, _begun(mean, now[0]), weights)
    apart = np.full(now.shape, NAN)
    for row in np.flatnonzero(judged | anew):
        if anew[row]:
            mean = np.full_like(mean, NAN)
        if judged[row]:
            mean = _begun(mean, now[row])
            np.subtract(now[row], mean, out=apart[row])
            moved = mean + weights[row] * apart[row]
            mean = np.where(np.isnan(moved), mean, moved)
    return apart, mean


def _against_whole(now: Floats, mean: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the same for rows without missing values, as in nearly all batches."""
    apart = np.empty_like(now)
    for row, weight in enumerate(weights):
        np.subtract(now[row], mean, out=apart[row])
        mean = mean + weight * apart[row]
    return apart, mean


def _begun(mean: Floats, now: Floats) -> Floats:
    """Return ``mean`` [L], with ``now`` where there is no mean yet."""
    unknown = np.isnan(mean)
    return np.where(unknown, now, mean) if unknown.any() else mean


def _register(signals: BatchColumns, past: Past) -> Counts:
    """Register each layer at its first finite sigma, with a floor if it was initialised to zero.

    Returns the row [L] from which on a layer is known: 0 by earlier batches, S not in this one.
    """
    start, floor = past["start"], past["floor"]
    known_from = np.where(np.isnan(start), len(signals.rows.batch.steps), 0)
    column = signals.metric("sigma")
    if column is None or not known_from.any():
        return known_from
    for row, new in _first_rows(sigma := column.known, known_from > 0):
        known_from[new] = row
        size = np.exp(start.astype(np.float64)) - floor  # of the layers registered before
        size[new] = np.maximum(sigma[row, new], LEAST_SIGMA)
        median = np.nanmedian(size)
        floor[new] = np.where(size[new] < BORN_AT_ZERO * median, FLOOR * median, 0.0)
        start[new] = np.log(size[new] + floor[new])
        past["newest"][new] = start[new]
    return known_from


def _first_rows(values: Floats, missing: Mask) -> list[tuple[int, Mask]]:
    """Return (row, layers) pairs: the ``missing`` layers whose first value is in that row."""
    if not missing.any():
        return []
    there = ~np.isnan(values)
    first = np.where(missing & there.any(axis=0), there.argmax(axis=0), -1)
    return [(int(row), first == row) for row in np.unique(first) if row >= 0]


def _after_action(signals: BatchColumns, values: Floats, now: Floats, floor: Floats) -> Floats:
    """Return the logarithms after the action, so that a rescale is not taken for a jump."""
    column = signals.metric("scale")
    if column is None:
        return now
    scale = column.known
    acted = (scale > 0) & (scale != 1) & np.isfinite(scale)
    if not acted.any():
        return now
    return _log(np.where(acted, scale, np.float32(1)) * values + floor)


def log_norms(signals: BatchColumns, memory: Memory) -> Floats:
    """Return the log Frobenius norm of each row and layer, NaN where it was not measured."""
    column = signals.metric("frobenius")
    assert column is not None
    places = memory.places(tuple(signals.layers))
    floor = memory.columns["norm_floor"][places]
    with np.errstate(over="ignore"):  # hostile rows may overflow
        return _log(column.known + np.nan_to_num(floor))


def _of_norm(
    signals: BatchColumns,
    jump: Floats | None,
    past: Past,
    known_from: Counts,
    judged: Mask,
    anew: Mask,
    trained: Counts,
) -> Mapping[str, Floats]:
    """Return the trends of the Frobenius norm: it shows a new top direction at once."""
    column = signals.metric("frobenius")
    if column is None:
        return {}
    norm = column.known
    if not judged.all():
        norm = np.where(judged[:, None], norm, NAN)
    floor = past["norm_floor"]
    for row, new in _first_rows(norm, np.isnan(floor)):
        is_zero = (past["floor"][new] > 0) & (known_from[new] <= row)
        floor[new] = np.where(is_zero, FLOOR * np.nanmedian(norm[row]), 0.0)
    held = norm + floor
    now = _log(held.copy())
    jumps, same = _norm_jumps(now, signals, norm, past, judged)
    found = {"norm_jump": jumps}
    if signals.metric("sigma") is not None and known_from.any():
        vectors = np.arange(len(norm))[:, None] < known_from
        found["norm_jump"][vectors] = NAN
        found["vector_growth"] = _of_vectors(norm, vectors, past, judged, anew, trained)
    if signals.metric("grad_norm") is not None:
        found["still"] = _still(signals, same, jump, past, judged)
    update = signals.metric("update_norm")
    if update is not None:
        ratio = update.known / np.maximum(held, TINY_NORM, out=held)
        found["update_ratio"] = np.minimum(ratio, LARGEST, out=ratio)
    return found


def _norm_jumps(
    now: Floats, signals: BatchColumns, norm: Floats, past: Past, judged: Mask
) -> tuple[Floats, Mask]:
    """Return the change of each norm since the last judged row, and where it is the last measured.

    NaN where that row had no norm. The second result, bool [S, L], says that a norm is that of its
    last measurement bit for bit, however long ago.
    """
    after = _after_action(signals, norm, now, past["norm_floor"])
    newest, fresh = past["newest_norm"], np.isnan(past["norm_skipped"])
    if judged.all() and fresh.all() and not np.isnan(now).any():
        jump = np.empty_like(now)
        np.subtract(now[0], newest, out=jump[0])
        np.subtract(now[1:], after[:-1], out=jump[1:])
        past["newest_norm"] = after[-1]
        return np.abs(jump, out=jump), jump == 0
    jump, same = np.full(now.shape, NAN), np.zeros(now.shape, np.bool_)
    for row in np.flatnonzero(judged):
        seen = ~np.isnan(now[row])
        change = np.abs(now[row] - newest)
        jump[row], same[row] = np.where(fresh, change, NAN), change == 0
        newest, fresh = np.where(seen, after[row], newest), seen
    past["newest_norm"], past["norm_skipped"] = newest, np.where(fresh, NAN, np.float32(1))
    return jump, same


def _of_vectors(
    norm: Floats, vectors: Mask, past: Past, judged: Mask, anew: Mask, trained: Counts
) -> Floats:
    """Return the growth of the norms of 1-d parameters: layers with a norm but without a sigma.

    A gain begins at one, a bias near zero. What counts is growth beyond half the size of the gains.
    """
    own = np.where(vectors, norm, NAN)
    floor = past["vector_floor"]
    for row, new in _first_rows(own, np.isnan(floor) & vectors.any(axis=0)):
        sizes = own[row, ~np.isnan(own[row])]
        floor[new] = FLOOR * max(np.median(sizes), FLOOR * sizes.max(), FLOOR)
    long = np.where(trained <= LONG_ROWS, 1 / (trained + 1), 1 / LONG_ROWS)
    growth, past["vector_mean"] = _against_mean(
        _log(own + floor), past["vector_mean"], judged, anew, long
    )
    return growth


def _still(
    signals: BatchColumns, same: Mask, of_sigma: Floats | None, past: Past, judged: Mask
) -> Floats:
    """Return in how many measured rows each weight has had a gradient and not changed by a bit.

    Rows in which half of the layers or more stand still say nothing of a single one.
    """
    gradient, norm = signals.metric("grad_norm"), signals.metric("frobenius")
    assert gradient is not None
    assert norm is not None
    found, count = np.full(same.shape, NAN), past["still"]
    if not same.any() and np.isnan(count).all():  # the usual case: every weight moves
        known = np.ones(same.shape, np.bool_) if norm.whole else ~np.isnan(norm.known)
        found[judged & known.any(axis=1)] = 0
        return found
    stood = same & (gradient.known > 0)
    if of_sigma is not None:
        stood &= _exact(signals) | ~(of_sigma > SAME)
    known = ~np.isnan(norm.known)
    sure = judged & (2 * stood.sum(axis=1) < known.sum(axis=1))
    count = np.nan_to_num(count)
    for row in np.flatnonzero(sure):
        moved = np.where(stood[row], count + np.float32(1), np.float32(0))
        count = np.where(known[row], moved, count)
        found[row] = count
    past["still"] = np.where(count > 0, count, NAN)
    return found


def _exact(signals: BatchColumns) -> Mask:
    """Return the rows [S, 1] whose norms have all digits of float32.

    A file may hold rounded ones, which stand still while the weight moves; sigma tells then. The
    estimate of a sigma goes on to converge while the weight stands still.
    """
    column = signals.metric("frobenius")
    assert column is not None
    low_bits = np.ascontiguousarray(column.values, "<f4").view("<u4") & 0xFFF
    exact: Mask = ((low_bits != 0) & column.finite).any(axis=1, keepdims=True)
    return exact


def _of_gradient(
    signals: BatchColumns, past: Past, judged: Mask, anew: Mask
) -> Mapping[str, Floats]:
    column, norm = signals.metric("grad_norm"), signals.metric("frobenius")
    if column is None:
        return {}
    gradient = np.maximum(column.known, TINY_GRADIENT)
    if not judged.all():
        gradient[~judged] = NAN
    shares = np.full(len(judged), 1 / RECENT_ROWS)
    logs = np.log(gradient)
    rise, past["gradient"] = _against_mean(logs, past["gradient"], judged, anew, shares)
    drop = np.negative(rise, out=rise)
    zero = column.known == 0
    few = zero.any() & (2 * zero.sum(axis=1) < (~np.isnan(column.known)).sum(axis=1))
    idle = zero & few[:, None]
    if idle.any():  # an expert to which nothing is routed, a part that is frozen
        drop[idle] = NAN
        gradient[idle] = NAN
    found = {"gradient_drop": drop}
    if norm is not None:
        found["gradient_ratio"] = gradient / np.maximum(norm.known, TINY_NORM)
    return found
