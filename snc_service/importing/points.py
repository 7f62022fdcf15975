"""Values at steps, in the order of their source."""

from __future__ import annotations

from array import array
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Steps: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[np.float64]


class Points:
    """Values at steps, in the order of the source."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")

    def ordered(self) -> tuple[Steps, Values]:
        """Return steps that increase strictly and their values; of one step, the last value."""
        if not self.steps:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        steps = np.frombuffer(self.steps, np.int64)
        values = np.frombuffer(self.values, np.float64)
        if len(steps) < 2 or bool((np.diff(steps) > 0).all()):
            return steps, values
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        is_last = np.append(steps[1:] != steps[:-1], True)
        return steps[is_last], values[is_last]
