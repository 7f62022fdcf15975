"""A run as columns, divided into the rows that detection reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from snc_service.store.types import RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import Batch, LayerTable, RuleSettings
from snc_service.wire.batch import Floats
from snc_service.wire.checks import MAX_STEPS

WRITER = "backtest"


def rows(
    run: str,
    layers: Sequence[str],
    steps: Sequence[int],
    metrics: Mapping[str, Floats],
    scalars: Mapping[str, Floats],
    *,
    attempt: int = 0,
    new_attempt: bool = False,
    size: int = MAX_STEPS,
    settings: RuleSettings | None = None,
    annotations: tuple[Annotation, ...] = (),
) -> Iterator[RunRows]:
    """Yield metrics [T, L] and scalars [T] at these steps in pieces of up to ``size`` steps.

    Raises `WireError` for input that is no valid batch: steps that do not increase, wrong names.
    """
    names = tuple(layers)
    table = LayerTable.of_names(names).hash
    for start in range(0, len(steps), size):
        part = slice(start, start + size)
        num = len(steps[part])
        values = [np.asarray(column[part], np.float32) for column in metrics.values()]
        along = [np.asarray(column[part], np.float32) for column in scalars.values()]
        batch = Batch(
            WRITER,
            0,
            table,
            tuple(int(step) for step in steps[part]),
            tuple(metrics),
            np.stack(values) if values else np.empty((0, num, len(names)), np.float32),
            tuple(scalars),
            np.stack(along) if along else np.empty((0, num), np.float32),
        )
        is_first = new_attempt and start == 0
        yield RunRows(run, batch, names, attempt, is_first, settings or RuleSettings(), annotations)
