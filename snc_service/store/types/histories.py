"""Measured values: their types, and the queries of the store that return them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.wire import LayerSpec
from snc_service.wire.batch import Floats

Steps: TypeAlias = npt.NDArray[np.int64]
COLUMNS: Final = ("mean", "min", "max")


@dataclass(frozen=True)
class LatestValues:
    """The newest value of every (layer, metric): ``values`` [M, L], ABSENT where there is none."""

    layers: tuple[LayerSpec, ...]  # model order
    steps: Steps  # [L], the step of each layer's newest values; -1: none yet
    metrics: tuple[str, ...]
    values: Floats

    def metric(self, name: str) -> Floats | None:
        """Return the [L] newest values of one metric, None if no layer ever reported it."""
        return self.values[self.metrics.index(name)] if name in self.metrics else None


@dataclass(frozen=True)
class Window:
    """A range of history and its resolution: ``from_step <= step <= to_step`` in ``points``."""

    from_step: int = 0
    to_step: int | None = None  # None: up to the newest step
    points: int = 1_000
    attempt: int | None = None  # None: the newest attempt, with earlier ones before its first step


@dataclass(frozen=True)
class Buckets:
    """Downsampled history of R rows (layers, or one scalar) in B buckets of ``bucket_steps`` steps.

    ``steps`` [B] is the first step of each bucket, or the exact step when ``bucket_steps`` is 1.
    Buckets are aligned to multiples of ``bucket_steps``, so a growing run does not move old ones.
    Empty buckets are left out. ``mean``, ``min`` and ``max`` are float32 [R, B] over the finite
    values. A bucket with values but no finite one is NaN in all three, one without values is
    ABSENT. ``nonfinite`` counts non-finite values per row and bucket.
    """

    rows: tuple[str, ...]
    steps: Steps
    mean: Floats
    min: Floats
    max: Floats
    nonfinite: npt.NDArray[np.int32]
    bucket_steps: int


@dataclass(frozen=True)
class Extent:
    """A selection of a run's values: None means all; a choice of ``layers`` excludes scalars."""

    metrics: tuple[str, ...] | None = None  # names of metrics and of scalars
    layers: tuple[str, ...] | None = None
    from_step: int = 0
    to_step: int | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class Piece:
    """Values as sent: one metric of R layers, or one scalar, at N steps of an attempt.

    ``values`` [R, N] is ABSENT where nothing was measured; every other bit pattern is data.
    """

    attempt: int
    metric: str
    layers: tuple[str, ...] | None  # None: the only row is a scalar
    steps: Steps
    values: Floats


@dataclass(frozen=True)
class Worst:
    """A layer and the largest finite value, or sigma / threshold, that it had at any one step."""

    layer: str
    value: float | None  # None: no value was finite
    step: int | None  # a step with that value
    nonfinite: int  # number of its values (of sigma, for a ratio) that were not finite
