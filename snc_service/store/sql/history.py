"""History: which batches and tiles answer a query, put together attempt by attempt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from snc_service.store import buckets
from snc_service.store.buckets import Partial
from snc_service.store.protocol import Buckets, Window
from snc_service.store.sql import tail
from snc_service.store.sql.attempts import Attempts
from snc_service.store.sql.database import Connection
from snc_service.store.sql.layers import LayerBook, Layout
from snc_service.store.sql.tail import Picked


def of_layers(
    connection: Connection,
    book: LayerBook,
    run_id: int,
    metric: str,
    names: Sequence[str],
    window: Window,
) -> Buckets:
    """Return one metric of some layers, a row each."""
    indexes = np.array(book.indexes(connection, run_id, names), np.int64)
    picked = _pick(book.layouts(connection, run_id), metric, indexes)
    return _answer(connection, run_id, picked, tuple(names), None, window)


def of_scalar(
    connection: Connection, book: LayerBook, run_id: int, scalar: str, window: Window
) -> Buckets:
    """Return one scalar."""
    one = np.zeros(1, np.intp)
    picked = [
        Picked(layout, one + layout.scalar_column(scalar), one)
        for layout in book.layouts(connection, run_id)
        if scalar in layout.scalars
    ]
    return _answer(connection, run_id, picked, (scalar,), None, window)


def of_all_layers(
    connection: Connection, book: LayerBook, run_id: int, metric: str, window: Window, most: int
) -> Buckets:
    """Return a metric of all layers that report it, in at most ``most`` rows.

    A row that stands for several layers is called "first … last" and holds the values of all of
    them: its min, max, mean and count are over its layers and the bucket's steps.
    """
    layouts = [x for x in book.layouts(connection, run_id) if metric in x.metrics]
    if not layouts:
        return buckets.finished((), Partial.empty(0), 1)
    indexes = np.unique(np.concatenate([x.layers for x in layouts])).astype(np.int64)
    specs = book.specs(connection, run_id)
    names = [specs[index].name for index in indexes]
    per_row = -(-len(names) // most)
    starts = np.arange(0, len(names), per_row)
    if per_row > 1:
        groups = [names[start : start + per_row] for start in starts]
        names = [g[0] if len(g) == 1 else f"{g[0]} … {g[-1]}" for g in groups]
    picked = _pick(layouts, metric, indexes)
    return _answer(connection, run_id, picked, tuple(names), starts, window, len(indexes))


def _pick(layouts: Sequence[Layout], metric: str, indexes: npt.NDArray[np.int64]) -> list[Picked]:
    """Return the columns of ``indexes`` in every layout that has the metric and one of them."""
    picked = []
    for layout in layouts:
        if metric not in layout.metrics:
            continue
        place = np.full(int(max(indexes.max(initial=-1), layout.layers.max(initial=-1))) + 1, -1)
        place[layout.layers] = np.arange(len(layout.layers)) + layout.columns(metric).start
        columns = place[indexes]
        rows = np.flatnonzero(columns >= 0)
        if len(rows):
            picked.append(Picked(layout, columns[rows], rows))
    return picked


def _answer(
    connection: Connection,
    run_id: int,
    picked: Sequence[Picked],
    names: tuple[str, ...],
    starts: npt.NDArray[np.intp] | None,
    window: Window,
    num_rows: int | None = None,
) -> Buckets:
    """Read, reduce and merge; ``starts`` merges groups of rows that begin there."""
    num_rows = len(names) if num_rows is None else num_rows
    segments = Attempts.load(connection, run_id).view(
        window.attempt, window.from_step, window.to_step
    )
    steps = [tail.measured_steps(connection, run_id, segment, picked) for segment in segments]
    count = sum(len(x) for x in steps)
    if not count:
        return buckets.finished(names, Partial.empty(len(names)), 1)
    measured = np.concatenate(steps)
    bucket_steps = buckets.width(count, int(measured[0]), int(measured[-1]), window.points)
    parts = [
        _reduced(keys, values, starts, bucket_steps)
        for segment, x in zip(segments, steps, strict=True)
        for keys, values in tail.matrices(connection, run_id, segment, picked, x, num_rows)
    ]
    return buckets.finished(names, buckets.merged(len(names), parts), bucket_steps)


def _reduced(
    steps: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    starts: npt.NDArray[np.intp] | None,
    bucket_steps: int,
) -> Partial:
    partial = Partial.of_values(steps, values).grouped(steps // bucket_steps)
    return partial if starts is None else partial.rows_merged(starts)
