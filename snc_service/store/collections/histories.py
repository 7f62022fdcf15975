"""Histories of a store: queries for measured values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from snc_service.store.downsampling import planes_for
from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.queries import history
from snc_service.store.sql.queries.export_scan import scan
from snc_service.store.sql.queries.worst import worst
from snc_service.store.sql.records import (
    runs,
)
from snc_service.store.sql.series import latest_values
from snc_service.store.sql.series.latest_scalars import newest_scalars
from snc_service.store.sql.series.layouts import LayerBook, metric_names
from snc_service.store.types import (
    Buckets,
    Extent,
    LatestValues,
    Piece,
    Window,
    Worst,
)
from snc_service.store.types.histories import COLUMNS


class Histories:
    """Values by run, metric and layer. Each method except `scan` reads one snapshot."""

    def __init__(self, database: Database, book: LayerBook) -> None:
        self._database = database
        self._book = book

    def latest(self, run: str) -> LatestValues:
        """Return the newest values. Raises `RunUnknown`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            layers = self._book.specs(connection, run_id)
            now = latest_values.merged(len(layers), latest_values.load(connection, run_id).values())
            return LatestValues(layers, now.steps, now.metrics, now.values)

    def metrics(self, run: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the metrics and of the scalars the run has reported, sorted."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return (
                metric_names(connection, run_id, "layer"),
                metric_names(connection, run_id, "run"),
            )

    def latest_scalars(self, run: str, from_step: int, most: int) -> Mapping[str, float]:
        """Return the newest value of each scalar reported at or after ``from_step``.

        Covers the first ``most`` scalars, in the order of their first report, and includes values
        that are not finite. Cost: one read of the newest batches, and a search per scalar that is
        not in them. Raises `RunUnknown`.
        """
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return newest_scalars(connection, self._book, run_id, from_step, most)

    def of_layers(
        self,
        run: str,
        metric: str,
        layers: Sequence[str],
        window: Window,
        *,
        columns: Collection[str] = COLUMNS,
    ) -> Buckets:
        """Return one metric of some layers. Raises `RunUnknown`, `LayerUnknown`.

        Columns outside ``columns`` are NaN and cost nothing.
        """
        planes = planes_for(columns)
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_layers(connection, self._book, run_id, metric, layers, window, planes)

    def of_scalar(self, run: str, scalar: str, window: Window) -> Buckets:
        """Return one scalar. Raises `RunUnknown`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_scalar(connection, self._book, run_id, scalar, window)

    def heatmap(
        self,
        run: str,
        metric: str,
        window: Window,
        layers: int,
        *,
        columns: Collection[str] = COLUMNS,
    ) -> Buckets:
        """Return up to ``layers`` rows in model order; with more layers several share a row (max).

        ``columns`` as in `of_layers`.
        """
        planes = planes_for(columns)
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_all_layers(
                connection, self._book, run_id, metric, window, layers, planes
            )

    def worst(
        self, run: str, metric: str, window: Window, most: int, *, below: str | None = None
    ) -> list[Worst]:
        """Return the ``most`` layers with the largest single values, the largest first.

        With ``below`` a value is ``metric`` divided by ``below`` of the same step, in float64;
        steps without both do not count. Layers with values that are not finite come before all
        others. The result is exact: rollups only narrow the search. ``window.points`` is ignored.
        Cost: the rollups of the window and a few tiles, or all tiles if ``below`` varies strongly.
        Raises `RunUnknown`, and `HistoryThinned` where the window's tiles were dropped.
        """
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return worst(connection, self._book, run_id, metric, window, most, below=below)

    def scan(self, run: str, extent: Extent) -> Iterator[Piece]:
        """Return an iterator over the values as sent, in pieces of bounded size.

        Sorted by attempt, metric and layers, then by step. Every value stored before the call comes
        exactly once, even if batches are ingested or folded during the scan. Values stored later,
        at steps that attempts had already reached, come at most once. Of a value that was sent
        again the last version comes. Each piece is read in its own transaction, so a slow reader
        blocks nothing. Values that thinning drops during the scan may be missing.

        Raises `RunUnknown`, `LayerUnknown` and `HistoryThinned` at once, and `RunUnknown` from the
        iterator once the run is deleted.
        """
        return scan(self._database, self._book, run, extent)
