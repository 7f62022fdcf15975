"""Histories of a store: queries for measured values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from snc_service.store.downsampling import planes_for
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.ingest.replay import newest_values
from snc_service.store.sql.ingest.run_memory import RunMemory
from snc_service.store.sql.queries import history
from snc_service.store.sql.queries.export_scan import scan
from snc_service.store.sql.queries.worst import worst
from snc_service.store.sql.records import (
    runs,
)
from snc_service.store.sql.series import damage, latest_values
from snc_service.store.sql.series.latest_scalars import newest_scalars
from snc_service.store.sql.series.layouts import LayerBook, metric_names
from snc_service.store.sql.series.tail import UnreadableSteps
from snc_service.store.standby import RunReads
from snc_service.store.types import (
    Buckets,
    Extent,
    LatestValues,
    Piece,
    StoreDamaged,
    Window,
    Worst,
)
from snc_service.store.types.histories import COLUMNS


class Histories:
    """Values by run, metric and layer. Each method except `scan` reads one snapshot.

    Every value is verified. Methods raise `StoreDamaged` for values that are not what was stored,
    and answer for all others.
    """

    def __init__(
        self,
        reads: RunReads,
        book: LayerBook,
        memory: RunMemory,
        note: Callable[[StoreDamaged], None],
    ) -> None:
        self._reads = reads
        self._book = book
        self._memory = memory
        self._note = note  # called with damage before it is raised

    @contextmanager
    def _reading(self, run: str) -> Iterator[Connection]:
        with self._noting(run), self._reads.of(run) as connection:
            yield connection

    @contextmanager
    def _noting(self, run: str) -> Iterator[None]:
        try:
            yield
        except StoreDamaged as error:
            self._note(error)
            raise
        except UnreadableSteps as unreadable:
            found = damage.of_steps(run, unreadable.steps)
            self._note(found)
            raise found from unreadable

    def latest(self, run: str) -> LatestValues:
        """Return the newest values. Raises `RunUnknown`.

        Cost: nothing is read if this process stored the run's newest batch, else the last
        checkpoint and up to 64 batches. A damaged value counts as not measured.
        """
        with self._reading(run) as connection:
            run_id = runs.number(connection, run)
            layers = self._book.specs(connection, run_id)
            known = self._memory.newest(run, run_id, runs.version(connection, run_id))
            parts = (
                newest_values(connection, self._book, run_id, len(layers))
                if known is None
                else known.parts
            )
            now = latest_values.merged(len(layers), parts)
            return LatestValues(layers, now.steps, now.metrics, now.values)

    def metrics(self, run: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the metrics and of the scalars the run has reported, sorted."""
        with self._reading(run) as connection:
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
        with self._reading(run) as connection:
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
        with self._reading(run) as connection:
            run_id = runs.number(connection, run)
            return history.of_layers(connection, self._book, run_id, metric, layers, window, planes)

    def of_scalar(self, run: str, scalar: str, window: Window) -> Buckets:
        """Return one scalar. Raises `RunUnknown`."""
        with self._reading(run) as connection:
            run_id = runs.number(connection, run)
            return history.of_scalar(connection, self._book, run_id, scalar, window)

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
        with self._reading(run) as connection:
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
        with self._noting(run):
            pieces = scan(lambda: self._reads.of(run), self._book, run, extent)
        return self._noted(run, pieces)

    def _noted(self, run: str, pieces: Iterator[Piece]) -> Iterator[Piece]:
        with self._noting(run):
            yield from pieces
