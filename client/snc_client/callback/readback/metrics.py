"""The metrics of a layer: their order in every row, and the values for "not measured".

On the host "not measured" is `snc_service.wire.ABSENT` for every metric, because NaN and the
infinities are measurements. `mark_absent` is the one place that writes it. A device has no such
value: ABSENT is a bit pattern of NaN, and arithmetic does not keep it. There a missing metric has a
value that the metric cannot take and that the arithmetic of a step can use as it is:

==============================  ======  ====================================================
metric                          device  reason
==============================  ======  ====================================================
threshold                       inf     sigma is never above it
scale, sigma_upper              NaN     a bound of a finite weight is a number or inf
frobenius ... guard, grad_norm  -1      norms are not negative, and NaN is a measurement
residual                        -inf    no metric of the layer was measured
==============================  ======  ====================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from snc_client.layer_row import Floats
from snc_service.wire import ABSENT

METRICS: Final = ("sigma", "threshold", "scale", "residual", "sigma_upper")
"""Measured by a device group, in every row."""
NORM_METRICS: Final = ("frobenius", "stable_rank", "grad_norm", "update_norm", "update_sigma")
"""Measured by `NormSignals`, where the job selects them."""
UPDATE_RATIOS: Final = ("update_sigma_ratio", "update_sigma_rms")
"""They come with update_sigma: over sigma, and over sqrt(fan_out / fan_in)."""
GUARD_METRIC: Final = "guard"
AGE_METRICS: Final = ("certified_age", "bound_age")
"""In steps, added on the host by `BoundProvenance`."""
NOT_MEASURED: Final = -1.0
"""The value on a device for a norm, the guard's metric and the scalar grad_norm."""
NO_SHARE: Final = -math.inf
"""The residual of a layer whose ranks did not all give their share, or did not agree."""


def device_metrics(norms: Sequence[str], *, guarded: bool) -> tuple[str, ...]:
    """Return the metrics that the devices of a job measure, in the order of a row."""
    wanted = [name for name in (*NORM_METRICS, *UPDATE_RATIOS) if name in norms]
    return (*METRICS, *wanted, *([GUARD_METRIC] if guarded else []))


def mark_absent(metrics: Sequence[str], values: Floats) -> None:
    """Write ABSENT into ``values`` (float32 [M, L]) where a device did not measure a metric."""
    values[:, np.isneginf(values[list(metrics).index("residual")])] = ABSENT
    for metric, row in zip(metrics, values, strict=True):
        if metric == "threshold":
            row[np.isinf(row)] = ABSENT
        elif metric in ("scale", "sigma_upper"):
            row[np.isnan(row)] = ABSENT
        elif metric not in METRICS:
            row[row < 0] = ABSENT
