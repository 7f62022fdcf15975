"""The per-layer series of one run: the selection of layers under the cap, and their lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.exposition.families import (
    LAYER_FAMILIES,
    RATIO,
    SIGMA,
    SIGMA_UPPER,
    THRESHOLD,
    Family,
)
from snc_service.exposition.text import Template
from snc_service.store.types import LatestValues
from snc_service.wire import ABSENT, absent

KEEP_SECONDS = 300.0  # a layer that is shown stays at least this long
NEWCOMER_LEAD = 1.05  # and is replaced only by one whose ratio is larger by this factor

_METRICS = {SIGMA: "sigma", SIGMA_UPPER: "sigma_upper", THRESHOLD: "threshold"}
Numbers = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


class LayerValues:
    """The newest values [L] of each per-layer family, and a mask of those that exist.

    ``before``, earlier values of the same run, lets it reuse the names.
    """

    def __init__(self, latest: LatestValues, before: LayerValues | None = None) -> None:
        self._layers = latest.layers
        self.names: tuple[str, ...] = (
            before.names
            if before is not None and before._layers == latest.layers
            else tuple(layer.name for layer in latest.layers)
        )
        nothing = np.full(len(self.names), ABSENT, np.float32)
        columns = {
            family: nothing if (column := latest.metric(metric)) is None else column
            for family, metric in _METRICS.items()
        }
        self.exists: dict[Family, Mask] = {f: ~absent(column) for f, column in columns.items()}
        self.values: dict[Family, Numbers] = dict(columns)
        sigma, threshold = columns[SIGMA], columns[THRESHOLD]
        self.nonfinite = self.exists[SIGMA] & ~np.isfinite(sigma)
        self.breaching = np.greater(sigma, threshold)
        with np.errstate(all="ignore"):  # a hostile threshold may be 0, a sigma infinite
            self.values[RATIO] = sigma / threshold.astype(np.float64)
        self.exists[RATIO] = self.exists[SIGMA] & self.exists[THRESHOLD]

    @property
    def series(self) -> npt.NDArray[np.int64]:
        """Return the number of series of each layer [L]."""
        series = np.zeros(len(self.names), np.int64)
        for family in LAYER_FAMILIES:
            series += self.exists[family]
        return series


class Selection:
    """The shown layers of a run; their start times keep the selection from flickering.

    Non-finite layers come first, then layers in breach, then layers shown for less than 5 minutes,
    then the rest by ratio, where a new layer needs a lead of 5 %.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def choose(self, values: LayerValues, budget: int, now: float) -> Mask:
        """Return the layers [L] that fit into ``budget`` series."""
        series = values.series
        if series.sum() <= budget:
            self._since.clear()
            return np.ones(len(series), np.bool_)
        since = np.array([self._since.get(name, np.nan) for name in values.names], np.float64)
        shown = ~np.isnan(since)
        ratio = np.where(values.exists[RATIO], values.values[RATIO], 0.0)
        ratio = np.nan_to_num(ratio, nan=0.0) * np.where(shown, NEWCOMER_LEAD, 1.0)
        fresh = shown & (now - np.where(shown, since, now) < KEEP_SECONDS)
        rank = np.select([values.nonfinite, values.breaching, fresh], [0, 1, 2], 3)
        order = np.lexsort((np.arange(len(ratio)), -ratio, rank))
        chosen = np.zeros(len(series), np.bool_)
        chosen[order[np.cumsum(series[order]) <= budget]] = True
        names = [values.names[index] for index in np.flatnonzero(chosen)]
        self._since = {name: self._since.get(name, now) for name in names}
        return chosen


class LayerText:
    """The lines of a run's per-layer families.

    A template is reused while the same layers are shown, its lines while their values stay the
    same: thresholds rarely change.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._families: dict[Family, _Filled] = {}

    def render(self, values: LayerValues, chosen: Mask) -> Mapping[Family, bytes]:
        """Return the lines of each family for the ``chosen`` layers [L], in model order."""
        return {
            family: self._lines(family, values, chosen & values.exists[family])
            for family in LAYER_FAMILIES
        }

    def _lines(self, family: Family, values: LayerValues, mask: Mask) -> bytes:
        filled = self._families.get(family)
        if filled is None or filled.names != values.names or filled.mask != mask.tobytes():
            shown = [values.names[index] for index in np.flatnonzero(mask)]
            template = Template(family, self._run, shown)
            filled = self._families[family] = _Filled(values.names, mask.tobytes(), template)
        return filled.lines(values.values[family][mask])


@dataclass
class _Filled:
    """A template, and the values of its last fill."""

    names: tuple[str, ...]
    mask: bytes
    template: Template
    values: bytes = b""
    text: bytes = b""

    def lines(self, values: Numbers) -> bytes:
        bits = values.tobytes()
        if bits != self.values:
            self.values, self.text = bits, self.template.fill(values)
        return self.text
