"""One row: what was measured at one step, as it waits to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]


class Row(NamedTuple):
    """What was measured at one step: ``values`` float32 [M, L], Unix seconds in ``time``."""

    step: int
    values: Floats
    scalars: Mapping[str, float]
    time: float
    spared: int = 0  # of the values a full spool gave up: they are ABSENT, and counted there

    @property
    def num_values(self) -> int:
        """Return M*L + K, less what was given up."""
        return self.values.size - self.spared + len(self.scalars)

    @property
    def num_bytes(self) -> int:
        """Return what the row costs on the wire and, nearly, in memory."""
        return 4 * (self.values.size + len(self.scalars))
