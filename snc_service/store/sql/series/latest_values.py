"""The newest values: one row per layer table, updated value by value, merged on read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.series.layouts import Indexes
from snc_service.store.types import Floats, Steps
from snc_service.wire import ABSENT, Batch, absent

log = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
UNMEASURED = -1
# Valid only at the step of a sigma: a threshold must not outlive its policy.
BESIDE_SIGMA = ("threshold", "scale")
SELECT = (
    "select latest.table_id, layer_table.layers, latest.metrics, latest.steps, latest.v "
    "from latest join layer_table on layer_table.run_id = latest.run_id "
    "and layer_table.table_id = latest.table_id where latest.run_id = ? "
    "order by latest.table_id"
)
UPSERT = (
    "insert into latest (run_id, table_id, metrics, steps, v) "
    "values (?, ?, ?, ?, ?) on conflict (run_id, table_id) do update set "
    "metrics = excluded.metrics, steps = excluded.steps, v = excluded.v"
)


@dataclass(frozen=True)
class Newest:
    """Newest values of the layers of one table, or of a whole run: ``values`` [M, L].

    ``steps`` and ``attempts`` [L] locate each layer's newest values. A metric that is missing there
    keeps its last value of the same attempt, except `BESIDE_SIGMA`. Never changed in place.
    """

    attempts: Steps
    steps: Steps
    metrics: tuple[str, ...]
    values: Floats

    @classmethod
    def empty(cls, num_layers: int) -> Newest:
        """Return the state before the first batch."""
        return cls(
            np.zeros(num_layers, np.int64),
            np.full(num_layers, UNMEASURED, np.int64),
            (),
            np.empty((0, num_layers), np.float32),
        )

    def row(self, metric: str) -> Floats | None:
        """Return the [L] values of a metric, or None."""
        return self.values[self.metrics.index(metric)] if metric in self.metrics else None

    def overlaid(self, newer: Newest, at: Indexes | slice) -> Newest:
        """Return these values with those of ``newer`` laid over the layers ``at``.

        Within an attempt later steps replace earlier ones. A later attempt replaces everything.
        "Not measured" replaces nothing.
        """
        if isinstance(at, slice) and self._is_covered_by(newer):
            return newer
        metrics = self.metrics + tuple(m for m in newer.metrics if m not in self.metrics)
        values = np.full((len(metrics), len(self.steps)), ABSENT, np.float32)
        values[: len(self.metrics)] = self.values
        rows = [metrics.index(m) for m in newer.metrics]
        old_attempts, old_steps = self.attempts[at], self.steps[at]
        measured = newer.steps != UNMEASURED
        restart = measured & ((newer.attempts > old_attempts) | (old_steps == UNMEASURED))
        same = measured & (newer.attempts == old_attempts)
        later = restart | (same & (newer.steps >= old_steps))
        block = values[:, at]
        block[:, restart] = ABSENT
        there = ~absent(newer.values)
        if "sigma" in newer.metrics:
            tied = np.array([m in BESIDE_SIGMA for m in newer.metrics])
            there |= tied[:, None] & there[newer.metrics.index("sigma")]
        fill = there & (later | (same & absent(block[rows])))
        block[rows] = np.where(fill, newer.values, block[rows])
        values[:, at] = block
        attempts, steps = self.attempts.copy(), self.steps.copy()
        attempts[at] = np.where(later, newer.attempts, old_attempts)
        steps[at] = np.where(later, newer.steps, old_steps)
        return Newest(attempts, steps, metrics, values)

    def _is_covered_by(self, newer: Newest) -> bool:
        """Return whether ``newer``, of the same layers, replaces all of these values."""
        later = (newer.attempts > self.attempts) | (
            (newer.attempts == self.attempts) & (newer.steps >= self.steps)
        )
        same = self.metrics == newer.metrics
        return same and bool(later.all()) and not absent(newer.values).any()


def of_batch(batch: Batch, attempt: int) -> Newest:
    """Return each layer's and metric's last measured value within a batch."""
    num_layers = batch.num_layers
    attempts = np.full(num_layers, attempt, np.int64)
    present = ~absent(batch.values)
    if present.size and present[:, -1].all():
        steps = np.full(num_layers, batch.steps[-1], np.int64)
        # A copy, so that the cached values do not keep the request body in memory.
        return Newest(attempts, steps, batch.metrics, batch.values[:, -1].copy())
    last = len(batch.steps) - 1 - np.argmax(present[:, ::-1], axis=1)  # [M, L]
    if "sigma" in batch.metrics:
        tied = [i for i, metric in enumerate(batch.metrics) if metric in BESIDE_SIGMA]
        ends = np.where(present.any(axis=1), last, 0)
        last[tied] = np.maximum(ends[tied], ends[batch.metrics.index("sigma")])
    values = np.take_along_axis(batch.values, last[:, None], axis=1)[:, 0]
    measured = present.any(axis=1)
    reached = np.where(measured, np.array(batch.steps, np.int64)[last], UNMEASURED)
    steps = reached.max(axis=0, initial=UNMEASURED)
    return Newest(attempts, steps, batch.metrics, values)


def merged(num_layers: int, parts: Iterable[tuple[Indexes, Newest]]) -> Newest:
    """Merge the rows of several layer tables into one over the run's layers in model order."""
    whole = Newest.empty(num_layers)
    for layers, part in parts:
        whole = whole.overlaid(part, layers)
    return whole


def load(connection: Connection, run_id: int) -> dict[int, tuple[Indexes, Newest]]:
    """Return the newest values of every layer table that has some, by the table's number."""
    return of_rows(run_id, connection.execute(SELECT, (run_id,)))


def of_table(connection: Connection, run_id: int, table_id: int, num_layers: int) -> Newest:
    """Return the newest values of one layer table that has some; none if they are damaged."""
    row = connection.execute(
        "select metrics, steps, v from latest where run_id = ? and table_id = ?",
        (run_id, table_id),
    ).fetchone()
    newest = None if row is None else _intact(run_id, table_id, num_layers, *row)
    return Newest.empty(num_layers) if newest is None else newest


def of_rows(run_id: int, rows: Iterable[Row]) -> dict[int, tuple[Indexes, Newest]]:
    """Return the content of the rows of `SELECT`, by the number of the layer table.

    What is damaged is left out: the run must go on, and so must those stored with it.
    """
    found = {}
    for table_id, blob, *columns in rows:
        layers = np.frombuffer(bytes(blob), np.int32)
        newest = _intact(run_id, table_id, len(layers), *columns)
        if newest is not None:
            found[table_id] = (layers, newest)
    return found


def row(run_id: int, table_id: int, newest: Newest) -> Row:
    """Return the parameters of `UPSERT` for the newest values of one layer table."""
    places = newest.steps.tobytes() + newest.attempts.tobytes()
    values = np.ascontiguousarray(newest.values).data
    return (run_id, table_id, json.dumps(newest.metrics), places, values)


def _intact(
    run_id: int, table_id: int, num_layers: int, metrics: str, steps: bytes, values: bytes
) -> Newest | None:
    """Return what a row holds, or None if that cannot be: it has no checksum."""
    try:
        names = tuple(map(str, json.loads(metrics)))
        places = np.frombuffer(bytes(steps), np.int64).reshape(2, num_layers)
        floats = np.frombuffer(bytes(values), np.float32).reshape(len(names), num_layers)
    except (ValueError, TypeError):
        log.exception(
            "the newest values of layer table %d of run number %d begin anew: they are damaged",
            table_id,
            run_id,
        )
        return None
    return Newest(places[1], places[0], names, floats)
