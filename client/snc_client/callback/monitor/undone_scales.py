"""UndoneScales: notices weights that come back unscaled, as copies of unknown masters do."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from snc_client.callback.model.master_weights import LOW, Masters
from snc_client.layer_row import LayerRow, Mask
from snc_client.layers import Layer

log = logging.getLogger("snc")

IN_A_ROW = 10  # measurements
# No step of a training that works moves a held weight that far, ten times in a row.
FAR_ABOVE = 1.1


class UndoneScales:
    """Warns once of low-precision layers whose rescales are undone at every step.

    Such a layer is scaled down to its threshold at one measurement, and is back above 1.1 times
    the threshold, no lower than before, at the next one: an optimizer that the callback does not
    know steps a copy, and writes it back. Cost: a few comparisons on the host for each row.
    """

    def __init__(self, layers: Sequence[Layer], masters: Masters) -> None:
        self._watched: Mask = np.array([_unmastered(x, masters) for x in layers], np.bool_)
        self._names = [layer.name for layer in layers]
        self._before = np.full(len(layers), np.inf, np.float32)  # sigma, where it was scaled
        self._count = np.zeros(len(layers), np.int64)
        self._said = not self._watched.any()

    def saw(self, row: LayerRow) -> None:
        """Take in a row that has arrived; warn if scales were undone in ten rows in a row."""
        if self._said:
            return
        sigma, scale = row.metric("sigma"), row.metric("scale")
        measured = np.isfinite(sigma)
        back = (sigma > FAR_ABOVE * row.metric("threshold")) & (sigma >= self._before)
        self._count = np.where(measured, np.where(back, self._count + 1, 0), self._count)
        scaled = np.where(scale < 1, sigma, np.inf)
        self._before = np.where(measured, scaled, self._before)
        undone = np.flatnonzero(self._watched & (self._count >= IN_A_ROW))
        if len(undone):
            self._said = True
            log.warning(
                "snc: %s is scaled down at each step and comes back: it looks like a copy of a "
                "master that grows unheld. Give masters={name: tensor}, or as optimizer= the one "
                "that steps the masters",
                ", ".join(self._names[i] for i in undone[:5]),
            )


def _unmastered(layer: Layer, masters: Masters) -> bool:
    try:
        return layer.weight().dtype in LOW and masters.of(layer) is None
    except LookupError:
        return False
