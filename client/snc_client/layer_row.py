"""LayerRow: the metrics of all layers at one step, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

# A layer whose sigma reached this share of its threshold may breach at the next step. Such a layer
# is measured at every step, and kept when a full spool thins its rows.
ACTIVE: Final = 0.9


@dataclass(frozen=True, eq=False)
class LayerRow:
    """M metrics of L layers at one step, from the device's copy to the packer of batches.

    ``values`` is float32 [M, L] in the order of ``metrics``; `metric` returns one of them by name.
    ``ABSENT`` means "not measured"; every other NaN is a measurement. ``scalars`` are numbers of
    the step as a whole, such as the loss. ``time`` is in Unix seconds.
    """

    step: int
    metrics: Sequence[str]
    values: Floats
    scalars: Mapping[str, float]
    time: float
    certified: Mask | None = None
    """bool [L]: layers whose sigma_upper is a certificate of this step. Not sent."""
    spared: int = 0
    """How many values a full spool gave up: they are ABSENT here, and counted by the spool."""

    def metric(self, name: str) -> Floats:
        """Return one metric of every layer, float32 [L], a view. Raises ValueError if unknown."""
        values: Floats = self.values[self.metrics.index(name)]
        return values

    @property
    def num_values(self) -> int:
        """Return M*L + K for K scalars, less the values that a full spool gave up."""
        return self.values.size - self.spared + len(self.scalars)

    @property
    def num_bytes(self) -> int:
        """Return the size of the row on the wire, about the same as in memory."""
        return 4 * (self.values.size + len(self.scalars))
