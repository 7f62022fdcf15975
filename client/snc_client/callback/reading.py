"""What a measurement looks like on the host: a reading per layer, the newest of all, the breach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt

from snc_service.wire import ABSENT, absent

# The rows of a measurement, in the order in which the device writes them.
METRICS: Final = ("sigma", "threshold", "scale", "residual", "sigma_upper")


class ThresholdBreached(RuntimeError):
    """Raised in the training loop for a layer whose action is ``stop``.

    ``sigma`` was measured after optimizer step ``step``; the host sees it one measurement later,
    because the loop never waits for the device.
    """

    def __init__(self, layer: str, step: int, sigma: float, threshold: float) -> None:
        super().__init__(
            f"sigma of {layer} must be at most {threshold:.6g}, got {sigma:.6g} at step {step}: "
            "the action of this layer is stop"
        )
        self.layer = layer
        self.step = step
        self.sigma = sigma
        self.threshold = threshold


class Reading(TypedDict):
    """One layer at one step. None: not measured, not certified, or no threshold.

    ``sigma`` and ``sigma_upper`` are from before the action, ``scale`` is what the action did;
    ``ratio`` is sigma / threshold.
    """

    sigma: float | None
    threshold: float | None
    scale: float | None
    residual: float | None
    sigma_upper: float | None
    ratio: float | None


@dataclass(frozen=True, eq=False)
class Latest(Mapping[str, Reading]):
    """The newest measurement that has arrived on the host: layer name -> `Reading`.

    ``step`` is -1 before the first one; ``columns`` is float32 [M, L], rows as in `METRICS`.
    """

    names: Sequence[str] = ()
    step: int = -1
    columns: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((len(METRICS), 0), np.float32)
    )
    scalars: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> Reading:
        try:
            column = self.columns[:, self.names.index(layer)]
        except ValueError:
            raise KeyError(layer) from None
        sigma, threshold, scale, residual, upper = (
            None if gone else float(value)
            for value, gone in zip(column, absent(column), strict=True)
        )
        ratio = None if sigma is None or threshold is None else sigma / threshold
        return Reading(
            sigma=sigma,
            threshold=threshold,
            scale=scale,
            residual=residual,
            sigma_upper=upper,
            ratio=ratio,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names if self.columns.shape[1] else ())

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def row(self, metric: str) -> npt.NDArray[np.float32]:
        """Return one metric of every layer, float32 [L]."""
        row: npt.NDArray[np.float32] = self.columns[METRICS.index(metric)]
        return row


def mark_absent(values: npt.NDArray[np.float32]) -> None:
    """Write ABSENT where the device says "none": an infinite threshold, a NaN scale or bound."""
    threshold = values[METRICS.index("threshold")]
    threshold[np.isinf(threshold)] = ABSENT
    for metric in ("scale", "sigma_upper"):
        row = values[METRICS.index(metric)]
        row[np.isnan(row)] = ABSENT
