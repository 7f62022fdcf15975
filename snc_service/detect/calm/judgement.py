"""Calm rows: one row of each of several runs, judged together.

A row is calm if every value of it is finite, its layers are the known ones, and no rule raises an
event: none is above its limit, but for a breach that goes on. Nearly all rows of small batches are
calm, and one numpy call covers those of many runs. The others are left to `rules.judge`, which then
finds the memory unchanged. Both give the same events and the same memory bit for bit: each
operation here is the one of `trends` and of the rule's own module, on an array with an axis for the
runs in place of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from snc_service.detect import onset
from snc_service.detect.calm.layers import CalmLayers
from snc_service.detect.calm.row import PLACE, CalmRow, count, goes_on, may_be_calm
from snc_service.detect.memory import Memory
from snc_service.detect.value_rules import ratios
from snc_service.store.types import RunRows
from snc_service.wire.batch import Floats

MOST_CELLS: Final = 65_536  # rows x layers at once: more would only take memory
_BREACH: Final = onset.BAND_RULES.index("breach")


def judge_calm(items: Sequence[tuple[Memory, RunRows]]) -> list[bool]:
    """Judge the calm rows among the next rows of several runs; return which ones were calm.

    The memory of a calm row has advanced, and the row raises no event. The others are unchanged,
    as are those whose judgement fails: `rules.judge` says what is wrong with them.
    No two items may be of one run. Cost: some 60 numpy calls for all runs that report the same
    metrics of equally many layers, and some 15 us per run.
    """
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for place, (memory, rows) in enumerate(items):
        with suppress(Exception):
            if may_be_calm(memory, rows):
                groups.setdefault((rows.batch.metrics, rows.batch.num_layers), []).append(place)
    calm = [False] * len(items)
    for (metrics, num_layers), of_group in groups.items():
        most = max(1, MOST_CELLS // num_layers)
        for start in range(0, len(of_group), most):
            for place in _calm_of_alike(items, metrics, of_group[start : start + most]):
                calm[place] = True
    return calm


def _calm_of_alike(
    items: Sequence[tuple[Memory, RunRows]], metrics: Sequence[str], places: list[int]
) -> list[int]:
    """Judge the rows at some places, which have the same metrics; return those of the calm ones."""
    values = np.stack([items[place][1].batch.values[:, 0] for place in places], axis=1)
    finite = np.isfinite(values)
    if not finite.all():
        whole = np.flatnonzero(finite.all(axis=(0, 2)))
        places, values = [places[each] for each in whole.tolist()], values[:, whole]
    if not places:
        return []
    rows = [CalmRow(place, *items[place]) for place in places]
    calm = _judged(rows, dict(zip(metrics, values, strict=True)))
    for verdict in calm:
        verdict.keep()
    return [verdict.row.place for verdict in calm]


@dataclass(frozen=True, eq=False)
class _Calm:
    """The verdict on a calm row; ``times_limit`` [L] is there where a breach goes on."""

    row: CalmRow
    table: Floats
    times_limit: Floats | None

    def keep(self) -> None:
        """Let the memory of the run advance."""
        memory, rows = self.row.memory, self.row.rows
        assert memory.together is not None
        memory.together[:] = self.table
        count(self.row, is_over=self.times_limit is not None)
        if self.times_limit is not None:
            lasting = (0,) if rows.settings["breach"].severity != "info" else ()
            onset.remember(memory, rows, [onset.Outside(0, _BREACH, self.times_limit)], lasting)


def _judged(rows: list[CalmRow], metrics: Mapping[str, Floats]) -> list[_Calm]:
    """Judge ``rows`` by their metrics [R, L]; return the verdicts on the calm, undo the others.

    Where that fails, each row is judged alone: what one run sends must not reach the others.
    """
    try:
        return _judged_together(rows, metrics)
    except Exception:
        for row in rows:
            row.undo()
    alone = [] if len(rows) == 1 else range(len(rows))
    parts = [{name: of[[place]] for name, of in metrics.items()} for place in alone]
    return [calm for place in alone for calm in _judged([rows[place]], parts[place])]


def _judged_together(rows: list[CalmRow], metrics: Mapping[str, Floats]) -> list[_Calm]:
    for row in rows:
        row.advance()
    tables = np.stack([row.memory.together for row in rows if row.memory.together is not None])
    values = np.array([row.values for row in rows])
    limits = np.array([row.rows.settings.limits for row in rows])
    group = CalmLayers(rows, metrics, tables, values, limits)
    with np.errstate(all="ignore"):  # hostile rows may overflow
        group.judge()
        above = values > limits
        over = above[:, PLACE["breach"]]
        is_loud = (group.unclear | (above.sum(axis=1) > over)).tolist()
        calm = []
        for place, (row, is_over) in enumerate(zip(rows, over.tolist(), strict=True)):
            if is_loud[place] or (is_over and not goes_on(row)):
                row.undo()
                continue
            far = ratios(metrics["sigma"][place], metrics["threshold"][place]) if is_over else None
            calm.append(_Calm(row, tables[place], far))
    return calm
