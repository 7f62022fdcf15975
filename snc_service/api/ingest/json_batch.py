"""The JSON form of a batch, for users, curl and other languages; equivalent to the binary form.

A cell is a number, null (not measured), or one of the strings ``"NaN"``, ``"Infinity"``,
``"-Infinity"``. Other forms that lenient JSON readers accept (true, "1.5", bare NaN, 1e999) are
refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from snc_service.api.ingest.body import parse_json
from snc_service.problems import Problem
from snc_service.wire import ABSENT, MAX_STEPS, Batch, LayerTable, WireError
from snc_service.wire.checks import MAX_LAYERS, MAX_WHOLE, shown

WORDS: Final = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_PLAIN: Final = {float, int}
_ALL: Final = {float, int, str, type(None)}

# Read untyped and checked row by row: a union checked per cell costs ten times as much.
Cell = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "null"}, {"type": "string", "enum": list(WORDS)}]}
    ),
]
Whole = Annotated[int, Field(ge=0, le=MAX_WHOLE)]


class JsonBatch(BaseModel):
    """``metrics[name][step][layer]`` and ``scalars[name][step]`` of the given steps and layers."""

    model_config = ConfigDict(extra="forbid")
    writer: str
    seq: Whole
    steps: list[Whole] = Field(min_length=1, max_length=MAX_STEPS)
    layers: list[str] = Field(default_factory=list, max_length=MAX_LAYERS)
    metrics: dict[str, list[list[Cell]]] = Field(default_factory=dict)
    scalars: dict[str, list[Cell]] = Field(default_factory=dict)
    times: list[float] | None = None
    skipped: Whole = 0
    dropped: Whole = 0
    attempt: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


JSON_EXAMPLE = {
    "writer": "curl",
    "seq": 0,
    "steps": [100, 101],
    "layers": ["fc1.weight", "fc2.weight"],
    "metrics": {"sigma": [[1.1, 2.0], [1.2, None]], "threshold": [[2.0, 2.0], [2.0, 2.0]]},
    "scalars": {"loss": [0.71, "NaN"], "lr": [0.001, 0.001]},
}


def decode_json(body: bytes) -> tuple[Batch, LayerTable]:
    """Return the batch and the layer table of its inline names.

    Raises `Problem` (400, 422) or `WireError`.
    """
    parsed = parse_json(JsonBatch, body)
    table = LayerTable.of_names(parsed.layers)
    steps = len(parsed.steps)
    if len(parsed.metrics) + len(parsed.scalars) > 32:
        raise Problem("invalid", "metrics and scalars must be at most 32", field="metrics")
    num_layers = len(parsed.layers) if parsed.metrics else 0  # as in the binary form
    values = np.empty((len(parsed.metrics), steps, num_layers), np.float32)
    for column, (name, rows) in zip(values, parsed.metrics.items(), strict=True):
        field = f"metrics.{name[:63]}"
        _expect(len(rows), steps, field, "rows, one per step")
        for into, row in zip(column, rows, strict=True):
            _expect(len(row), num_layers, field, "values per row, one per layer")
            into[:] = _cells(row, field)
    scalar_values = np.empty((len(parsed.scalars), steps), np.float32)
    for into, (name, row) in zip(scalar_values, parsed.scalars.items(), strict=True):
        _expect(len(row), steps, f"scalars.{name[:63]}", "values, one per step")
        into[:] = _cells(row, f"scalars.{name[:63]}")
    batch = Batch(
        writer=parsed.writer,
        seq=parsed.seq,
        layers=table.hash,
        steps=tuple(parsed.steps),
        metrics=tuple(parsed.metrics),
        values=values,
        scalars=tuple(parsed.scalars),
        scalar_values=scalar_values,
        times=_times(parsed.times),
        skipped=parsed.skipped,
        dropped=parsed.dropped,
        attempt=parsed.attempt,
    )
    return batch, table


def _times(times: list[float] | None) -> tuple[float, ...] | None:
    if times is None:
        return None
    for time in times:
        if not 0 <= time < 1e10:
            raise WireError("times", f"must be Unix seconds, got {shown(time)}")
    return tuple(times)


def _expect(got: int, wanted: int, field: str, what: str) -> None:
    if got != wanted:
        raise WireError(field, f"must hold {wanted} {what}, got {got}")


def _cells(row: list[Any], field: str) -> npt.NDArray[np.float32]:
    """Return one row of cells as float32, with `ABSENT` where there is null."""
    kinds = set(map(type, row))
    if not kinds <= _ALL:
        bad = next(cell for cell in row if type(cell) not in _ALL)
        raise _refused(field, bad)
    if kinds <= _PLAIN:
        return _numbers(row, field)
    words = [i for i, cell in enumerate(row) if isinstance(cell, str)]
    nulls = [i for i, cell in enumerate(row) if cell is None]
    plain = [0.0 if cell is None or isinstance(cell, str) else cell for cell in row]
    cells = _numbers(plain, field)
    for i in words:
        if row[i] not in WORDS:
            raise _refused(field, row[i])
        cells[i] = WORDS[row[i]]
    cells.view(np.uint32)[nulls] = ABSENT.view(np.uint32)
    return cells


def _numbers(row: list[float], field: str) -> npt.NDArray[np.float32]:
    try:
        wide = np.array(row, np.float64)
    except OverflowError:
        wide = np.full(len(row), np.inf)
    # A number less than half a unit above the largest float32 rounds down to it and is accepted.
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise _refused(field, row[int(np.argmin(np.isfinite(narrow)))])
    return narrow


def _refused(field: str, value: object) -> WireError:
    return WireError(
        field,
        f"must hold numbers up to {FLOAT32_MAX:.4g}, null for not measured, or the strings "
        f'"NaN", "Infinity", "-Infinity", got {shown(value)}',
    )
