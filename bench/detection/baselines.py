"""Alarms that a team would have without these rules, on the signals of a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Signals = Mapping[str, npt.NDArray[Any]]
Mask = npt.NDArray[np.bool_]
WINDOW = 128


def spike(series: npt.NDArray[Any], deviations: float = 6.0) -> Mask:
    """Fire where a value is that many deviations above the mean of the last 128, or not finite."""
    found = ~np.isfinite(series)
    for row in range(20, len(series)):
        past = series[max(0, row - WINDOW) : row]
        past = past[np.isfinite(past)].astype(np.float64)
        if len(past) > 10:
            found[row] |= series[row] > past.mean() + deviations * max(past.std(), 1e-9)
    return found


def loss_spike(signals: Signals) -> Mask:
    return spike(signals["loss"])


def gradient_spike(signals: Signals) -> Mask:
    return spike(signals["ggrad"])


def zclip(signals: Signals) -> Mask:
    """Fire where ZClip would clip: z above 2.5 on running moments with a share of .03."""
    norms = signals["ggrad"].astype(np.float64)
    found = ~np.isfinite(norms)
    mean, square = 0.0, 0.0
    for row, norm in enumerate(norms):
        if not np.isfinite(norm):
            continue
        if row < 25:
            mean, square = mean + (norm - mean) / (row + 1), square + (norm**2 - square) / (row + 1)
            continue
        deviation = max(square - mean**2, 1e-12) ** 0.5
        found[row] = norm > mean + 2.5 * deviation
        kept = mean + 2.5 * deviation if found[row] else norm
        mean, square = 0.97 * mean + 0.03 * kept, 0.97 * square + 0.03 * kept**2
    return found


def debugger(signals: Signals) -> Mask:
    """Fire as SageMaker Debugger's VanishingGradient, ExplodingTensor and WeightUpdateRatio do."""
    with np.errstate(all="ignore"):
        gradient = signals["gnorm"]
        broken = ~np.isfinite(signals["loss"]) | ~np.isfinite(gradient).all(axis=1)
        vanished = (gradient < 1e-7).all(axis=1)
        ratio = signals["unorm"] / np.maximum(signals["fro"], 1e-9)
        return broken | vanished | (np.nan_to_num(ratio).max(axis=1) > 10)


BASELINES: Mapping[str, Callable[[Signals], Mask]] = {
    "loss, 6 deviations over 128": loss_spike,
    "gradient norm, 6 deviations": gradient_spike,
    "ZClip's test, z 2.5": zclip,
    "SageMaker Debugger's rules": debugger,
}
