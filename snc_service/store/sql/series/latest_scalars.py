"""The newest scalars: from one read of the tail, or by search where they are sparse."""

from __future__ import annotations

import numpy as np

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.queries import history
from snc_service.store.sql.series import tail
from snc_service.store.sql.series.attempts import Attempts
from snc_service.store.sql.series.layouts import LayerBook, Layout
from snc_service.store.sql.series.selection import Picked
from snc_service.store.types import Window
from snc_service.wire import ABSENT, absent

RECENT = 256  # steps that are read together
POINTS = 1_000


def newest_scalars(
    connection: Connection, book: LayerBook, run_id: int, from_step: int, most: int
) -> dict[str, float]:
    """Return each scalar's newest value at or after ``from_step``, if it has one.

    Covers the run's first ``most`` scalars, in the order of their first report.
    """
    layouts = [layout for layout in book.layouts(connection, run_id) if layout.scalars]
    layouts.sort(key=lambda layout: layout.number)
    names = list(dict.fromkeys(name for layout in layouts for name in layout.scalars))[:most]
    found = _recent(connection, run_id, layouts, names, from_step)
    for name in names:
        if name not in found:
            value = _older(connection, book, run_id, name, from_step)
            found |= {} if value is None else {name: value}
    return found


def _recent(
    connection: Connection, run_id: int, layouts: list[Layout], names: list[str], from_step: int
) -> dict[str, float]:
    """Return the scalars of the newest attempt's last steps that are still in the tail."""
    segments = Attempts.load(connection, run_id).view(None, from_step, None)
    picked = [one for layout in layouts if (one := _picked(layout, names)) is not None]
    if not segments or not picked:
        return {}
    newest, counted = segments[-1], {one.layout.number for one in picked}
    steps = tail.measured_steps(connection, run_id, newest, counted)[-RECENT:]
    if not len(steps):
        return {}
    values = np.full((len(names), len(steps)), ABSENT, np.float32)
    tail.read_over(connection, run_id, newest.attempt, picked, steps, values)
    there = ~absent(values)
    return {
        name: float(row[mask][-1])
        for name, row, mask in zip(names, values, there, strict=True)
        if mask.any()
    }


def _picked(layout: Layout, names: list[str]) -> Picked | None:
    mine = [name for name in layout.scalars if name in names]
    columns = np.array([layout.scalar_column(name) for name in mine], np.intp)
    rows = np.array([names.index(name) for name in mine], np.intp)
    return Picked(layout, columns, rows) if mine else None


def _older(
    connection: Connection, book: LayerBook, run_id: int, name: str, from_step: int
) -> float | None:
    """Return a scalar's newest value by narrowing the last bucket that has one."""
    window = Window(from_step, None, POINTS)
    while True:
        found = history.of_scalar(connection, book, run_id, name, window)
        if not len(found.steps):
            return None
        last, width = int(found.steps[-1]), found.bucket_steps
        if width == 1:
            return float(found.mean[0, -1])
        window = Window(last, last + width - 1, POINTS)
