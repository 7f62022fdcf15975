"""When the trouble showed: the symptom rule of the scoring protocol, from the loss alone.

C is the loss with 1e9 in place of what is not finite, med_k the median of the last k values (the
first one repeated before the start), m the running minimum of med5(C), and L0 the larger of the
first loss and m there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


class Symptom(NamedTuple):
    """``row`` is None where the loss shows nothing; a symptom before the cause sets that to 0."""

    kind: str
    cause: int
    row: int | None


def symptom(
    losses: Sequence[float],
    cause: int,
    healthy: Sequence[float],
    *,
    moving: bool = False,
    ramp: bool = False,
) -> Symptom:
    """Judge a run by its loss [T] and that of the healthy base run of its task.

    ``moving``: the target of the loss moves, so its level says little.
    """
    clean = cleaned(losses)
    kind, row = divergence(losses, clean, cause, cleaned(healthy), moving=moving)
    if row is None and not moving:
        kind, row = lag(clean, cleaned(healthy), max(cause, 20, len(clean) // 2 if ramp else 0))
    if row is None:
        return Symptom("none", cause, None)
    return Symptom(kind, cause if row >= cause else 0, row)


def divergence(
    losses: Sequence[float], clean: Doubles, cause: int, healthy: Doubles, *, moving: bool
) -> tuple[str, int | None]:
    """Return the first row from which the loss stays high, or at all is."""
    threshold, least = thresholds(clean, healthy, moving=moving)
    smooth = running_median(clean, 3)
    exceeds = (smooth > threshold) & (np.arange(len(clean)) >= 3)
    high = least + 0.5 * (threshold - least)
    first = sustained = None
    for row in np.flatnonzero(exceeds):
        after = smooth[row + 1 : row + 51]
        first = int(row) if first is None else first
        if len(after) < 10 or np.mean(after > high[row]) >= 0.8:
            sustained = int(row)
            break
    kind, found = ("diverge", sustained) if sustained is not None else ("transient", first)
    if sustained is not None and first is not None and cause <= first > sustained - 100:
        found = first
    broken = np.flatnonzero(~np.isfinite(np.asarray(losses, np.float64)))
    if broken.size and (found is None or broken[0] < found):
        return "diverge", int(broken[0])
    return kind, found


def thresholds(clean: Doubles, healthy: Doubles, *, moving: bool) -> tuple[Doubles, Doubles]:
    """Return what the median of 3 must exceed, and the best median of 5 so far, [T] each.

    The loss of a moving target must leave the range of the healthy run by its width as well.
    """
    least = np.minimum.accumulate(running_median(clean, 5))
    start = max(clean[0], least[0]) if clean[0] < 1e9 else 1.0
    if moving:
        low, high = healthy[20:].min(), healthy[20:].max()
        limit = np.maximum(np.maximum(3 * least, least + 0.5), high + (high - low))
        limit[:30] = np.maximum(limit[:30], 3 * abs(start))
        return limit, least
    middle = least + np.maximum(0.5 * (start - least), 0.35 * least)
    return np.maximum(np.minimum(3 * least, middle), least + 0.35), least


def lag(clean: Doubles, healthy: Doubles, begin: int) -> tuple[str, int | None]:
    """Return from which row on the loss lags behind the healthy one, if it ends there."""
    level = healthy[-50:].mean()
    gap = healthy[0] - level
    end = clean[-50:].mean()
    if end <= level + 0.12 * gap:
        return "none", None
    kind, share = ("stall", 0.35) if end > level + 0.35 * gap else ("degraded", 0.12)
    length = min(len(clean), len(healthy))
    above = running_median(clean, 9)[:length] > running_median(healthy, 9)[:length] + share * gap
    for row in range(begin, length):
        if above[row] and np.mean(above[row : row + 40]) > 0.7:
            return kind, row
    return kind, len(clean) - 1


def running_median(values: Doubles, size: int) -> Doubles:
    """Return the median of the last ``size`` values, [T]."""
    padded = np.concatenate((np.full(size - 1, values[0]), values))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    return np.asarray(np.median(windows, axis=1), np.float64)


def cleaned(losses: Sequence[float]) -> Doubles:
    values = np.asarray(losses, np.float64)
    return np.where(np.isfinite(values), values, 1e9)
