"""Where a run at work stands: newest sigma and threshold of every layer, over all layer tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from snc_service.store.sql.series.latest_values import Newest, merged
from snc_service.store.sql.series.layouts import Indexes
from snc_service.wire import absent

JUDGED = ("sigma", "threshold")


@dataclass(frozen=True)
class Standing:
    """``newest`` of the layers ``layers``: those of one table, or all of the run in their order.

    Kept from batch to batch, so that a batch does not cost more with each table that the run has.
    """

    layers: Indexes
    newest: Newest
    is_whole: bool = False

    @classmethod
    def of_tables(cls, num_layers: int, parts: Iterable[tuple[Indexes, Newest]]) -> Standing:
        """Return where a run stands by the newest values of its tables."""
        judged = [(layers, _judged(newest)) for layers, newest in parts]
        if len(judged) == 1:
            return cls(*judged[0])
        return cls(np.arange(num_layers, dtype=np.int32), merged(num_layers, judged), True)

    def renewed(self, num_layers: int, layers: Indexes, newest: Newest) -> Standing:
        """Return it with the newest values of one table laid over it."""
        judged = _judged(newest)
        if not self.layers.size or self._is_of(layers):
            return Standing(layers, judged)
        if not self.is_whole or len(self.layers) < num_layers:
            return Standing.of_tables(num_layers, [(self.layers, self.newest), (layers, judged)])
        return Standing(self.layers, self.newest.overlaid(judged, layers), True)

    def _is_of(self, layers: Indexes) -> bool:
        """Return whether it stands for these layers alone."""
        same = layers is self.layers or np.array_equal(layers, self.layers)
        return not self.is_whole and same

    def worst(self) -> tuple[float | None, int, int]:
        """Return the largest ratio (None: there is none), its layer, and how many sigma of layers
        are not finite.
        """
        sigma, threshold = self.newest.row("sigma"), self.newest.row("threshold")
        if sigma is None:
            return None, -1, 0
        finite = np.isfinite(sigma)
        num_nonfinite = 0 if finite.all() else int(np.count_nonzero(~finite & ~absent(sigma)))
        if threshold is None:
            return None, -1, num_nonfinite
        usable = finite & np.isfinite(threshold) & (threshold > 0)
        if usable.all() and len(usable):  # the usual case
            ratio = np.divide(sigma, threshold, dtype=np.float64)
        elif usable.any():
            ratio = np.full(len(sigma), -np.inf)
            with np.errstate(invalid="ignore"):  # to widen a signalling NaN is invalid
                np.divide(sigma, threshold, out=ratio, where=usable, dtype=np.float64)
        else:
            return None, -1, num_nonfinite
        worst = int(np.argmax(ratio))
        return float(ratio[worst]), int(self.layers[worst]), num_nonfinite


def _judged(newest: Newest) -> Newest:
    rows = [place for place, metric in enumerate(newest.metrics) if metric in JUDGED]
    metrics = tuple(newest.metrics[place] for place in rows)
    if rows == list(range(len(rows))):  # the usual order: no copy
        return Newest(newest.attempts, newest.steps, metrics, newest.values[: len(rows)])
    return Newest(newest.attempts, newest.steps, metrics, newest.values[rows])
