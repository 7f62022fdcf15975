"""The columns of one batch as the rules read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.store.types import RunRows
from snc_service.wire import absent
from snc_service.wire.batch import Floats

Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BatchColumn:
    """Received values (float32): one per row and layer, or one per row.

    ``whole``: all of them are finite, so no other check is needed.
    """

    values: Floats
    whole: bool

    @property
    def finite(self) -> Mask:
        """Return where a value is a finite number, and so was measured."""
        return np.isfinite(self.values)

    @property
    def measured(self) -> Mask:
        """Return where a value was measured."""
        return ~absent(self.values)

    @property
    def broken(self) -> Mask:
        """Return where a value was measured and is NaN or infinite."""
        return self.measured & ~self.finite

    @property
    def known(self) -> Floats:
        """Return the values, with NaN in place of every value that is not finite."""
        return self.values if self.whole else np.where(self.finite, self.values, np.float32(np.nan))


@dataclass(frozen=True, eq=False)
class BatchColumns:
    """S rows of L layers: metrics are [S, L], scalars [S]; a missing column is None."""

    rows: RunRows
    _columns: dict[tuple[str, str], BatchColumn | None] = field(default_factory=dict)

    @cached_property
    def whole(self) -> bool:
        """Return whether every value of the batch is finite, the usual case and a cheap test."""
        batch = self.rows.batch
        return bool(np.isfinite(batch.values).all() and np.isfinite(batch.scalar_values).all())

    @property
    def layers(self) -> Sequence[str]:
        """Return the L layer names."""
        return self.rows.layers

    def metric(self, name: str) -> BatchColumn | None:
        """Return the [S, L] column of a metric."""
        return self._column("metric", name)

    def scalar(self, name: str) -> BatchColumn | None:
        """Return the [S] column of a scalar."""
        return self._column("scalar", name)

    def _column(self, kind: str, name: str) -> BatchColumn | None:
        if (kind, name) not in self._columns:
            batch = self.rows.batch
            values = batch.metric(name) if kind == "metric" else batch.scalar(name)
            column = None
            if values is not None:
                column = BatchColumn(values, self.whole or bool(np.isfinite(values).all()))
            self._columns[kind, name] = column
        return self._columns[kind, name]
