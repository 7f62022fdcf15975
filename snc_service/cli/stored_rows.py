"""Rows of a stored run, read over REST in step order, window by window."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snc_service.backtest.columns import rows
from snc_service.cli.failure import Failure
from snc_service.cli.service import ServiceClient
from snc_service.importing.tables import unmarked
from snc_service.store.types import RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import ABSENT, RuleSettings, WireError
from snc_service.wire.batch import Floats
from snc_service.wire.checks import MAX_LAYERS

# The metrics and scalars that rules read.
METRICS: Final = ("sigma", "threshold", "scale", "frobenius", "grad_norm", "update_norm", "guard")
SCALARS: Final = ("loss", "grad_norm", "lr", "guard_vetoes", "guard_rollbacks")
CELLS_AT_ONCE: Final = 2_000_000  # steps x layers of a window; four bytes per cell and metric
MOST_STEPS: Final = 1_000  # of a window
MOST_ATTEMPTS: Final = 1_000


@dataclass(frozen=True)
class RuleContext:
    """The settings and annotations that rows carry for the rules."""

    settings: RuleSettings
    annotations: tuple[Annotation, ...]


@dataclass
class StepWindow:
    """Columns of the steps ``low`` to ``high``, filled in any order."""

    low: int
    high: int
    num_layers: int
    metrics: dict[str, Floats] = field(default_factory=dict)
    scalars: dict[str, Floats] = field(default_factory=dict)

    def put(self, metric: str, layer: int | None, step: int, value: float) -> None:
        """Write one value; ``layer`` None is a scalar."""
        num = self.high - self.low + 1
        if layer is None:
            if metric not in self.scalars:
                self.scalars[metric] = np.full(num, ABSENT, np.float32)
            self.scalars[metric][step - self.low] = value
            return
        if metric not in self.metrics:
            self.metrics[metric] = np.full((num, self.num_layers), ABSENT, np.float32)
        self.metrics[metric][step - self.low, layer] = value


def layer_names(service: ServiceClient, run: str) -> list[str]:
    """Return the run's layers in model order."""
    found = service.items("runs", run, "layers", limit=MAX_LAYERS, sort="model")
    return [str(item["layer"]) for item in found]


def stored_run(service: ServiceClient, run: str) -> Iterator[RunRows]:
    """Yield the rows of every attempt of a run, the oldest attempt first.

    Rows of several writers at one step are merged. They carry the run's annotations and the rule
    settings now in force for it. Memory: one window of at most `CELLS_AT_ONCE` cells per metric.
    Raises `Failure`.
    """
    layers = layer_names(service, run)
    planned = RuleContext(_settings(service, run), _annotations(service, run))
    known = service.get("runs", run)
    if known["attempt"] >= MOST_ATTEMPTS:
        raise Failure(f"{run} must have at most {MOST_ATTEMPTS} attempts, got {known['attempt']}")
    metrics = [name for name in METRICS if name in known["metrics"]]
    scalars = [name for name in SCALARS if name in known["scalars"]]
    size = max(1, min(MOST_STEPS, CELLS_AT_ONCE // max(1, len(layers))))
    for attempt in range(known["attempt"] + 1):
        bounds = _bounds(service, run, attempt, metrics, scalars)
        if bounds is None:
            continue
        is_new = True
        for low in range(bounds[0], bounds[1] + 1, size):
            window = StepWindow(low, min(low + size - 1, bounds[1]), len(layers))
            _fill(window, service, run, attempt, layers, {*metrics, *scalars})
            for piece in _cut(window, run, layers, attempt, is_new, planned):
                yield piece
                is_new = False


def _bounds(
    service: ServiceClient, run: str, attempt: int, metrics: list[str], scalars: list[str]
) -> tuple[int, int] | None:
    """Return the first step of an attempt, and a step at or after its last."""
    answers = [
        service.get("runs", run, "heatmap", metric=name, points=2, layers=1, attempt=attempt)
        for name in metrics
    ]
    answers += [
        service.get("runs", run, "scalars", name, "history", points=2, attempt=attempt)
        for name in scalars
    ]
    found = [answer for answer in answers if answer["steps"]]
    if not found:
        return None
    last = max(answer["steps"][-1] + answer["bucket_steps"] - 1 for answer in found)
    return min(answer["steps"][0] for answer in found), last


def _fill(
    window: StepWindow,
    service: ServiceClient,
    run: str,
    attempt: int,
    layers: list[str],
    names: set[str],
) -> None:
    index = {name: at for at, name in enumerate(layers)}
    chunks = service.stream(
        *("runs", run, "export"),
        format="csv",
        metric=sorted(names),
        from_step=window.low,
        to_step=window.high,
        attempt=attempt,
    )
    lines = csv.reader(_lines(chunks))
    try:
        next(lines, None)
        for _, _, metric, layer, step, value in lines:
            at = index.get(unmarked(layer)) if layer else None
            if layer and at is None:
                continue  # a layer that came after the list was read
            if (metric in METRICS) if layer else (metric in SCALARS):
                window.put(metric, at, int(step), float(value))
    except (ValueError, IndexError, csv.Error) as error:
        raise Failure(f"the export of {run} is not in the form of this release: {error}") from None


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield text lines of a stream of bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from whole
    if rest:
        yield rest


def _settings(service: ServiceClient, run: str) -> RuleSettings:
    try:
        return RuleSettings.parse({"rules": service.get("runs", run, "rules").get("rules")})
    except WireError as error:
        raise Failure(f"the rules of {run} are not in the form of this release: {error}") from None


def _annotations(service: ServiceClient, run: str) -> tuple[Annotation, ...]:
    items = service.get("runs", run, "annotations")["items"]
    return tuple(
        Annotation(each["id"], each["step"], each["quiet_steps"], each["text"], each["author"], 0.0)
        for each in items
    )


def _cut(
    window: StepWindow,
    run: str,
    layers: list[str],
    attempt: int,
    is_new: bool,
    planned: RuleContext,
) -> Iterator[RunRows]:
    """Yield the steps of a window with a measured value."""
    columns = [*window.metrics.values(), *window.scalars.values()]
    there = np.zeros(window.high - window.low + 1, np.bool_)
    for column in columns:
        measured = column.view(np.uint32) != ABSENT.view(np.uint32)
        there |= measured if measured.ndim == 1 else measured.any(axis=1)
    at = np.flatnonzero(there)
    if not at.size:
        return
    try:
        yield from rows(
            run,
            layers,
            (at + window.low).tolist(),
            {name: column[at] for name, column in window.metrics.items()},
            {name: column[at] for name, column in window.scalars.items()},
            attempt=attempt,
            new_attempt=is_new,
            settings=planned.settings,
            annotations=planned.annotations,
        )
    except WireError as error:
        raise Failure(f"{run}: {error}") from None
