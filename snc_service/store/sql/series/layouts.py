"""Layers, layer tables and layouts: the meaning of the columns of a stored batch.

A layer has one index per run, given at its first registration. A layout is a layer table plus the
metrics and scalars of a batch in their order. Batches of one layout have the same columns.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.types import LayerTableUnknown, LayerUnknown, RunBounds, RunFull
from snc_service.store.types.bounds import LEAST_TABLE
from snc_service.wire import Batch, LayerSpec, LayerTable

Indexes = npt.NDArray[np.int32]
T = TypeVar("T")
LEAST_LAYERS = 64  # what the smallest thing counts as that is remembered
MANY_NAMES = 50  # are looked up in the list of all layers; fewer are queried one by one


class Remembered(Generic[T]):
    """A bounded cache of immutable items; the least recently used are dropped first."""

    def __init__(self, most_layers: int) -> None:
        self._most_layers = most_layers
        self._layers = 0
        self._items: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        """Return the item under ``key``, None if it is not cached."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def keep(self, key: Hashable, item: T, layers: int) -> T:
        """Cache ``item`` at a cost of ``layers`` and return it."""
        with self._lock:
            if key not in self._items:
                self._items[key] = (item, layers + LEAST_LAYERS)
                self._layers += layers + LEAST_LAYERS
            while self._layers > self._most_layers and len(self._items) > 1:
                self._layers -= self._items.popitem(last=False)[1][1]
        return item


@dataclass(frozen=True)
class Layout:
    """The columns of a stored batch: metric by metric all layers, then the scalars."""

    number: int
    layers: Indexes  # [L], the run's index of each layer
    metrics: tuple[str, ...]
    scalars: tuple[str, ...]

    def columns(self, metric: str) -> slice:
        """Return the columns of a metric, layers in the table's order."""
        start = self.metrics.index(metric) * len(self.layers)
        return slice(start, start + len(self.layers))

    def scalar_column(self, scalar: str) -> int:
        """Return the column of a scalar."""
        return len(self.metrics) * len(self.layers) + self.scalars.index(scalar)


@dataclass(frozen=True)
class KnownTable:
    """A registered layer table, its number in the run and the run's index of each layer."""

    number: int
    layers: Indexes
    table: LayerTable


@dataclass(frozen=True)
class StoredColumns:
    """A layout with its layer table."""

    table: KnownTable
    metrics: tuple[str, ...]
    scalars: tuple[str, ...]


class LayerBook:
    """Reads and writes layers; caches parsed tables, specs and layouts, which never change."""

    def __init__(self, bounds: RunBounds) -> None:
        self.bounds = bounds
        self._tables: Remembered[LayerTable] = Remembered(40_000)  # of 350 bytes
        self._specs: Remembered[tuple[LayerSpec, ...]] = Remembered(500_000)
        self._layouts: Remembered[Layout] = Remembered(2_000_000)
        self._columns: Remembered[StoredColumns] = Remembered(500_000)

    def put(self, connection: Connection, run_id: int, table: LayerTable) -> bool:
        """Register a table; layers the run does not know yet get the next indexes.

        Returns whether it is new, so that the run's version has grown by one. Raises `RunFull`.
        """
        if self._row(connection, run_id, table.hash) is not None:
            return False
        self._check_room(connection, run_id, table)
        rows = connection.execute("select name, layer from layer where run_id = ?", (run_id,))
        known: dict[str, int] = dict(rows.fetchall())
        new = [spec for spec in table.layers if spec.name not in known]
        if new and len(known) + len(new) > self.bounds.layers:
            raise RunFull("layers", "layers", self.bounds.layers, field="layers")
        for index, spec in enumerate(new, start=len(known)):
            known[spec.name] = index
        connection.executemany(
            "insert into layer (run_id, layer, name, kind, shape) values (?, ?, ?, ?, ?)",
            [(run_id, known[x.name], x.name, x.kind, json.dumps(x.shape)) for x in new],
        )
        indexes = np.array([known[name] for name in table.names], np.int32)
        connection.execute(
            "insert into layer_table (run_id, table_id, hash, layers, body) "
            "select ?, count(*), ?, ?, ? from layer_table where run_id = ?",
            (run_id, table.hash, indexes.tobytes(), table.body, run_id),
        )
        connection.execute(
            "update run set layers = ?, version = version + 1 where run_id = ?",
            (len(known), run_id),
        )
        self._tables.keep(table.hash, table, len(table.layers))
        return True

    def table(self, connection: Connection, run_id: int, table_hash: str) -> KnownTable:
        """Return a registered table. Raises `LayerTableUnknown`."""
        row = self._row(connection, run_id, table_hash)
        if row is None:
            raise LayerTableUnknown(f"the run has no layer table {table_hash}: register it first")
        table_id, layers = row
        # A table is identified by the hash of its content, so one cache serves all runs.
        table = self._tables.get(table_hash)
        if table is None:
            (body,) = connection.execute(
                "select body from layer_table where run_id = ? and table_id = ?", (run_id, table_id)
            ).fetchone()
            table = LayerTable.parse(bytes(body))
            self._tables.keep(table_hash, table, len(table.layers))
        return KnownTable(table_id, np.frombuffer(layers, np.int32), table)

    def layout_number(
        self, connection: Connection, run_id: int, table_id: int, batch: Batch
    ) -> int:
        """Return the number of the batch's layout, registering its columns when they are new.

        Raises `RunFull`; nothing was changed then.
        """
        key = (run_id, table_id, json.dumps(batch.metrics), json.dumps(batch.scalars))
        found = (
            "select layout from layout "
            "where run_id = ? and table_id = ? and metrics = ? and scalars = ?"
        )
        row = connection.execute(found, key).fetchone()
        if row is None:
            self._check_names(connection, run_id, batch)
            connection.execute(
                "insert into layout (run_id, layout, table_id, metrics, scalars) "
                "select ?, count(*), ?, ?, ? from layout where run_id = ?",
                (*key, run_id),
            )
            for kind, names in (("layer", batch.metrics), ("run", batch.scalars)):
                self._register_metrics(connection, run_id, kind, names)
            row = connection.execute(found, key).fetchone()
        return int(row[0])

    def layouts(self, connection: Connection, run_id: int) -> list[Layout]:
        """Return all layouts of a run."""
        rows = connection.execute(
            "select layout, table_id, metrics, scalars from layout where run_id = ? "
            "order by layout",
            (run_id,),
        ).fetchall()
        return [self._layout(connection, run_id, *row) for row in rows]

    def columns(self, connection: Connection, run_id: int, number: int) -> StoredColumns:
        """Return one layout of a run, with its layer table."""
        columns = self._columns.get((run_id, number))
        if columns is None:
            hash_, metrics, scalars = connection.execute(
                "select layer_table.hash, layout.metrics, layout.scalars from layout "
                "join layer_table on layer_table.run_id = layout.run_id "
                "and layer_table.table_id = layout.table_id "
                "where layout.run_id = ? and layout.layout = ?",
                (run_id, number),
            ).fetchone()
            table = self.table(connection, run_id, hash_)
            columns = StoredColumns(table, tuple(json.loads(metrics)), tuple(json.loads(scalars)))
            self._columns.keep((run_id, number), columns, len(table.layers))
        return columns

    def specs(self, connection: Connection, run_id: int) -> tuple[LayerSpec, ...]:
        """Return the run's layers in model order."""
        (count,) = connection.execute(
            "select count(*) from layer where run_id = ?", (run_id,)
        ).fetchone()
        # Layers are only added, so their number identifies the list.
        specs = self._specs.get((run_id, count))
        if specs is None:
            rows = connection.execute(
                "select name, kind, shape from layer where run_id = ? order by layer", (run_id,)
            ).fetchall()
            specs = tuple(LayerSpec(name, kind, tuple(json.loads(s))) for name, kind, s in rows)
            self._specs.keep((run_id, count), specs, count)
        return specs

    def indexes(self, connection: Connection, run_id: int, names: Sequence[str]) -> list[int]:
        """Return the indexes of layers by name. Raises `LayerUnknown`."""
        if len(names) > MANY_NAMES:
            known = {spec.name: at for at, spec in enumerate(self.specs(connection, run_id))}
            if all(name in known for name in names):
                return [known[name] for name in names]
        found = []
        for name in names:
            row = connection.execute(
                "select layer from layer where run_id = ? and name = ?", (run_id, name)
            ).fetchone()
            if row is None:
                raise LayerUnknown(f"the run has no layer {name!r}")
            found.append(int(row[0]))
        return found

    def _check_room(self, connection: Connection, run_id: int, table: LayerTable) -> None:
        rows = connection.execute(
            "select length(layers) from layer_table where run_id = ?", (run_id,)
        ).fetchall()
        width = np.dtype(np.int32).itemsize
        sizes = [num_bytes // width for (num_bytes,) in rows] + [len(table.layers)]
        if rows and sum(max(size, LEAST_TABLE) for size in sizes) > self.bounds.table_layers:
            raise RunFull(
                f"layers in all layer tables, of each at least {LEAST_TABLE:,},",
                "table_layers",
                self.bounds.table_layers,
                field="layers",
            )

    def _check_names(self, connection: Connection, run_id: int, batch: Batch) -> None:
        for kind, names, noun in (
            ("layer", batch.metrics, "metrics"),
            ("run", batch.scalars, "scalars"),
        ):
            known = set(metric_names(connection, run_id, kind))
            new, limit = [name for name in names if name not in known], getattr(self.bounds, noun)
            if new and len(known) + len(new) > limit:
                raise RunFull(f"names of {noun}", noun, limit, field=noun)
        (count,) = connection.execute(
            "select count(*) from layout where run_id = ?", (run_id,)
        ).fetchone()
        if count >= self.bounds.layouts:
            raise RunFull(
                "combinations of layers, metrics and scalars",
                "layouts",
                self.bounds.layouts,
                field="metrics",
            )

    def _row(
        self, connection: Connection, run_id: int, table_hash: str
    ) -> tuple[int, bytes] | None:
        row = connection.execute(
            "select table_id, layers from layer_table where run_id = ? and hash = ?",
            (run_id, table_hash),
        ).fetchone()
        return None if row is None else (int(row[0]), bytes(row[1]))

    def _layout(
        self,
        connection: Connection,
        run_id: int,
        number: int,
        table_id: int,
        metrics: str,
        scalars: str,
    ) -> Layout:
        layout = self._layouts.get((run_id, number))
        if layout is not None:
            return layout
        (layers,) = connection.execute(
            "select layers from layer_table where run_id = ? and table_id = ?", (run_id, table_id)
        ).fetchone()
        indexes = np.frombuffer(bytes(layers), np.int32)
        layout = Layout(number, indexes, tuple(json.loads(metrics)), tuple(json.loads(scalars)))
        return self._layouts.keep((run_id, number), layout, len(indexes))

    def _register_metrics(
        self, connection: Connection, run_id: int, kind: str, names: Sequence[str]
    ) -> None:
        for name in names:
            connection.execute(
                "insert into metric (run_id, metric, kind, name) "
                "select ?, count(*), ?, ? from metric where run_id = ? "
                "on conflict (run_id, kind, name) do nothing",
                (run_id, kind, name, run_id),
            )


def metric_names(connection: Connection, run_id: int, kind: str) -> tuple[str, ...]:
    """Return the names of the metrics (kind ``layer``) or scalars (kind ``run``), sorted."""
    rows = connection.execute(
        "select name from metric where run_id = ? and kind = ? order by name", (run_id, kind)
    )
    return tuple(name for (name,) in rows)


def metric_numbers(connection: Connection, run_id: int) -> dict[tuple[str, str], int]:
    """Return the number of every metric and scalar of a run by (kind, name)."""
    rows = connection.execute("select kind, name, metric from metric where run_id = ?", (run_id,))
    return {(kind, name): number for kind, name, number in rows}
