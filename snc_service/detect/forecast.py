"""Forecast: the step at which a layer reaches its threshold at its recent rate. It never alerts.

The slope of log sigma is a running mean over about 20 rows. On recorded runs whose sigma grew
without end, half way to a crossing, the ratio of predicted to true remaining steps had the median
1.04, and 80 % of the ratios lay between 0.33 and 2.05. A healthy layer mostly slows down and never
reaches its threshold.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from snc_service.detect.trends import Doubles
from snc_service.wire.batch import Floats

ROWS: Final = 100  # newest rows that enter the slope
LEAST_ROWS: Final = 20  # fewest rows for a forecast
SHARE: Final = 0.05  # weight of the newest row in the slope


def from_step(newest: int, gap: int) -> int:
    """Return the first step of the window, where rows are ``gap`` steps apart."""
    return max(0, newest - ROWS * gap)


def crossings(
    steps: npt.NDArray[np.int64], sigma: Floats, threshold: Floats
) -> tuple[Doubles, Doubles]:
    """Return the slope of log sigma per step [L], and the steps left until ``threshold`` [L].

    ``sigma`` is [L, B] at ``steps`` [B], NaN where it was not measured. The steps are infinite for
    a layer that does not grow, is above already, has too few rows or was not measured last.
    """
    num_layers = len(threshold)
    slope, rows = np.zeros(num_layers), np.zeros(num_layers)
    before, at = np.full(num_layers, np.nan), np.zeros(num_layers)
    with np.errstate(all="ignore"):
        logs = np.log(sigma.astype(np.float64))
        for step, now in zip(steps.tolist(), logs.T, strict=True):
            seen = np.isfinite(now)
            moved = (now - before) / np.maximum(step - at, 1)
            known = seen & np.isfinite(moved)
            rows += known
            share = np.maximum(SHARE, 1 / np.maximum(rows, 1))
            slope = np.where(known, slope + share * (moved - slope), slope)
            before, at = np.where(seen, now, before), np.where(seen, step, at)
        left = (np.log(threshold.astype(np.float64)) - before) / slope
    usable = (rows >= LEAST_ROWS) & (slope > 0) & (left > 0) & np.isfinite(left)
    return slope, np.where(usable, left, np.inf)
