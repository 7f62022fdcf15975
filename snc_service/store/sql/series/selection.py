"""The selection of a query: the rows of its answer, and their places in tail and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series.layouts import Layout
from snc_service.store.tiles import BLOCK_LAYERS

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Picked:
    """The columns of a layout that a query needs: ``columns`` go to ``rows`` of the answer."""

    layout: Layout
    columns: Rows
    rows: Rows

    @property
    def first(self) -> int:
        """Return the first column."""
        return int(self.columns.min())

    @property
    def span(self) -> int:
        """Return the number of columns from the first to the last."""
        return int(self.columns.max()) - self.first + 1


@dataclass(frozen=True)
class LayerBlock:
    """A block of 16 layers: its rows ``lanes`` go to ``rows`` of the answer."""

    number: int
    lanes: Rows
    rows: Rows


@dataclass(frozen=True)
class Wanted:
    """R rows of one metric or scalar of a run.

    A step counts as measured for a query if it is in a batch whose layout has the metric for some
    layer of the query's ``blocks`` (a ``counted`` layout). Tiles use the same definition.
    """

    run_id: int
    metric: int
    num_rows: int
    picked: tuple[Picked, ...]
    counted: frozenset[int]
    blocks: tuple[LayerBlock, ...]


def layers_of(
    connection: Connection,
    run_id: int,
    layouts: Sequence[Layout],
    metric: str,
    indexes: npt.NDArray[np.int64],
) -> Wanted:
    """Return the location of a metric of the layers ``indexes`` (distinct)."""
    reporting = [layout for layout in layouts if metric in layout.metrics]
    number = _metric(connection, run_id, "layer", metric)
    numbers = indexes // BLOCK_LAYERS
    blocks = [
        LayerBlock(int(b), indexes[numbers == b] % BLOCK_LAYERS, np.flatnonzero(numbers == b))
        for b in np.unique(numbers)
    ]
    counted = {x.number for x in reporting if np.isin(x.layers // BLOCK_LAYERS, numbers).any()}
    picked = [one for x in reporting if (one := _pick(x, metric, indexes)) is not None]
    return Wanted(run_id, number, len(indexes), tuple(picked), frozenset(counted), tuple(blocks))


def scalar_of(
    connection: Connection, run_id: int, layouts: Sequence[Layout], scalar: str
) -> Wanted:
    """Return the location of a scalar: the only row of its only block."""
    zero = np.zeros(1, np.intp)
    picked = tuple(
        Picked(layout, zero + layout.scalar_column(scalar), zero)
        for layout in layouts
        if scalar in layout.scalars
    )
    counted = frozenset(one.layout.number for one in picked)
    number = _metric(connection, run_id, "run", scalar)
    return Wanted(run_id, number, 1, picked, counted, (LayerBlock(0, zero, zero),))


def _metric(connection: Connection, run_id: int, kind: str, name: str) -> int:
    """Return the number of a metric in the run, -1 if it was never reported."""
    row = connection.execute(
        "select metric from metric where run_id = ? and kind = ? and name = ?", (run_id, kind, name)
    ).fetchone()
    return -1 if row is None else int(row[0])


def _pick(layout: Layout, metric: str, indexes: npt.NDArray[np.int64]) -> Picked | None:
    most = max(int(indexes.max(initial=-1)), int(layout.layers.max(initial=-1)))
    place = np.full(most + 1, -1, np.intp)
    place[layout.layers] = np.arange(len(layout.layers)) + layout.columns(metric).start
    columns = place[indexes]
    rows = np.flatnonzero(columns >= 0)
    return Picked(layout, columns[rows], rows) if len(rows) else None
