"""`History` and `HeatmapArrays`: answers of the service as numpy arrays, and as tables on request.

pandas, polars and pyarrow are imported when a table of theirs is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snc_client.errors import ApiError

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class History:
    """One metric of one layer, or one scalar, along the steps of a run.

    ``steps``, ``mean``, ``min``, ``max`` and ``nonfinite`` are arrays of one length [N]. If
    ``bucket_steps`` is 1, the values are exact and the three value arrays are equal. Else entry
    ``i`` describes the steps from ``steps[i]`` to ``steps[i] + bucket_steps - 1``. A value that was
    not measured, or that is not finite, is NaN; ``nonfinite`` counts the second kind.
    """

    run: str
    layer: str | None  # None: a scalar
    metric: str
    bucket_steps: int
    steps: Integers
    mean: Doubles
    min: Doubles
    max: Doubles
    nonfinite: Integers

    def __len__(self) -> int:
        return len(self.steps)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame: step, mean, min, max, nonfinite. Needs pandas."""
        import pandas

        return pandas.DataFrame(self._columns())

    def to_polars(self) -> polars.DataFrame:
        """Return a DataFrame: step, mean, min, max, nonfinite. Needs polars."""
        import polars

        return polars.DataFrame(self._columns())

    def to_arrow(self) -> pyarrow.Table:
        """Return a Table: step, mean, min, max, nonfinite. Needs pyarrow."""
        import pyarrow

        return pyarrow.table(self._columns())

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        values = {"mean": self.mean, "min": self.min, "max": self.max}
        return {"step": self.steps, **values, "nonfinite": self.nonfinite}


@dataclass(frozen=True, eq=False)
class HeatmapArrays:
    """One metric of all layers of a run: the largest value of each layer and bucket of steps.

    ``values`` and ``nonfinite`` are arrays [layers, steps], ``layers`` are in model order. A model
    with more layers than rows was asked for shares rows: their names read "first … last", their
    values are the largest of the row. NaN: not measured, or not finite where ``nonfinite`` > 0.
    """

    run: str
    metric: str
    bucket_steps: int
    layers: tuple[str, ...]
    steps: Integers
    values: Doubles
    nonfinite: Integers

    def to_pandas(self) -> pandas.DataFrame:
        """Return ``values`` as a DataFrame: layers are rows, steps are columns. Needs pandas."""
        import pandas

        columns = pandas.Index(self.steps, name="step")
        return pandas.DataFrame(self.values, pandas.Index(self.layers, name="layer"), columns)


def history_of(
    answer: Mapping[str, Any], columns: Mapping[str, Any], *, layer: str | None, metric: str
) -> History:
    """Return a history from an answer of the service. Raises `ApiError` if it is malformed."""
    try:
        steps = np.array(answer["steps"], np.int64)
        parts = {name: _doubles(columns[name], steps.shape) for name in ("mean", "min", "max")}
        nonfinite = np.array(columns["nonfinite"], np.int64).reshape(steps.shape)
        run, bucket_steps = str(answer["run"]), int(answer["bucket_steps"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ApiError(f"the answer is no history: {type(error).__name__}: {error}") from None
    return History(run, layer, metric, bucket_steps, steps, **parts, nonfinite=nonfinite)


def heatmap_of(answer: Mapping[str, Any]) -> HeatmapArrays:
    """Return a heatmap from an answer of the service. Raises `ApiError` if it is malformed."""
    try:
        steps = np.array(answer["steps"], np.int64)
        layers = tuple(str(name) for name in answer["layers"])
        shape = (len(layers), len(steps))
        nonfinite = np.array(answer["nonfinite"] or np.zeros(shape), np.int64).reshape(shape)
        values = _doubles(answer["max"], shape)
        run, metric = str(answer["run"]), str(answer["metric"])
        bucket_steps = int(answer["bucket_steps"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ApiError(f"the answer is no heatmap: {type(error).__name__}: {error}") from None
    return HeatmapArrays(run, metric, bucket_steps, layers, steps, values, nonfinite)


def _doubles(values: object, shape: tuple[int, ...]) -> Doubles:
    """Return an array; null in JSON becomes NaN."""
    return np.array(values, np.float64).reshape(shape)
