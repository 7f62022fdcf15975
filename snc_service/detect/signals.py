"""The columns of one batch as the rules read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.store.protocol import Rows
from snc_service.wire import absent

Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Column:
    """Values as they came (float32) and which of them were measured at all."""

    values: Floats
    measured: Mask

    @property
    def broken(self) -> Mask:
        """Return where a value was measured and is NaN or infinite."""
        return self.measured & ~np.isfinite(self.values)


@dataclass(frozen=True, eq=False)
class Signals:
    """S rows of L layers: metrics are [S, L], scalars [S]; a column that did not come is None."""

    rows: Rows

    @property
    def layers(self) -> Sequence[str]:
        """Return the L layer names."""
        return self.rows.layers

    def metric(self, name: str) -> Column | None:
        """Return one number per row and layer."""
        return _column(self.rows.batch.metric(name))

    def scalar(self, name: str) -> Column | None:
        """Return one number per row."""
        return _column(self.rows.batch.scalar(name))


def _column(values: Floats | None) -> Column | None:
    return None if values is None else Column(values, ~absent(values))
