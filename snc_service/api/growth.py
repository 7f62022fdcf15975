"""How far layers have grown since their first values: what the worst is where no threshold says."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.store import Store
from snc_service.store.types import LatestValues, Run, StoreDamaged, Window
from snc_service.wire import absent

Doubles: TypeAlias = npt.NDArray[np.float64]

NORMS: Final = ("sigma", "frobenius")  # the first that a layer reports counts
POINTS: Final = 64  # the first value is exact in short runs, else the mean of a 64th of the run
MOST_RUNS: Final = 32


class Growth:
    """Newest norms over first ones. First norms are read once, and again when layers are new."""

    def __init__(self) -> None:
        self._firsts: OrderedDict[tuple[str, float], tuple[tuple[int, int], Doubles]] = (
            OrderedDict()
        )
        self._lock = Lock()

    def of(self, store: Store, run: Run, latest: LatestValues) -> Doubles:
        """Return newest norm / first norm [L], NaN where one is not known or not finite.

        A layer that started near zero is compared with half of the median first norm.
        """
        newest, first = np.full((2, len(latest.layers)), np.nan)
        reported = {name: latest.metric(name) for name in NORMS}
        chosen = {name: np.empty(0, np.intp) for name in NORMS}
        for name, values in reported.items():
            if values is not None:
                rows = np.flatnonzero(~absent(values) & np.isnan(newest))
                chosen[name] = rows
                newest[rows] = values[rows]
        key, state = (run.run, run.created_at), (len(newest), sum(map(len, chosen.values())))
        with self._lock:
            known = self._firsts.get(key)
        if known is not None and known[0] == state:
            first = known[1]
        else:
            for name, rows in chosen.items():
                first[rows] = _firsts(store, run.run, name, [latest.layers[i].name for i in rows])
        with self._lock:
            self._firsts[key] = state, first
            self._firsts.move_to_end(key)
            while len(self._firsts) > MOST_RUNS:
                self._firsts.popitem(last=False)
        with np.errstate(all="ignore"):
            grown = newest / first
        return np.where(np.isfinite(grown), grown, np.nan)


def _firsts(store: Store, run: str, metric: str, layers: list[str]) -> Doubles:
    """Return the first finite value of each layer, at least half of their median."""
    if not layers:
        return np.empty(0)
    try:
        found = store.histories.of_layers(
            run, metric, layers, Window(points=POINTS), columns=("mean",)
        )
    except StoreDamaged:  # the order of layers is no reason to refuse their newest values
        return np.full(len(layers), np.nan)
    means: Doubles = found.mean.astype(np.float64)
    if not means.size:
        return np.full(len(layers), np.nan)
    first = means[np.arange(len(layers)), np.isfinite(means).argmax(axis=1)]
    finite = first[np.isfinite(first)]
    least = float(np.median(finite)) / 2 if finite.size else 0.0
    floored: Doubles = np.maximum(first, least)
    return floored
