"""Histories along the steps: of one layer, of several layers, or of a scalar."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, shortest, unchanged
from snc_service.api.conventions.parameters import (
    METRIC_PATTERN,
    MetricName,
    Name,
    RunName,
    WindowQuery,
)
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.store import Store
from snc_service.store.types import Buckets, LayerUnknown

router = APIRouter(prefix="/api/v1", tags=["history"])


class HistoryQuery(WindowQuery):
    """One metric of one layer."""

    metric: MetricName = "sigma"
    points: int = Field(1_000, ge=1, le=10_000, description="The most buckets.")


class LayersHistoryQuery(WindowQuery):
    """One metric of several layers."""

    layer: list[Name] = Field(min_length=1, max_length=50)
    metric: MetricName = "sigma"
    points: int = Field(1_000, ge=1, le=2_000, description="The most buckets.")


class ScalarQuery(WindowQuery):
    """A scalar's window."""

    points: int = Field(1_000, ge=1, le=10_000, description="The most buckets.")


class Columns(BaseModel):
    """One number per bucket. null: not measured, or not finite where ``nonfinite`` > 0."""

    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    nonfinite: list[int]


class Along(BaseModel):
    """Buckets along the steps; ``bucket_steps`` 1 means exact values at exact steps."""

    run: str
    bucket_steps: int
    steps: list[int]


class LayerHistory(Along, Columns):
    """One metric of one layer."""

    layer: str
    metric: str


class ScalarHistory(Along, Columns):
    """One scalar."""

    scalar: str


class NamedColumns(Columns):
    """The history of one layer in a common answer."""

    layer: str


class LayersHistory(Along):
    """One metric of several layers, in the requested order, along the same steps."""

    metric: str
    layers: list[NamedColumns]
    without: list[str]


_ALONG: dict[str, Any] = {"run": "gpt-small-1", "bucket_steps": 1, "steps": [100, 101, 102]}
_COLUMNS: dict[str, Any] = {
    "mean": [1.1, 1.2, None],
    "min": [1.1, 1.2, None],
    "max": [1.1, 1.2, None],
    "nonfinite": [0, 0, 1],
}
_METRIC = {"metric": "sigma"}
_LAYER = {"layer": "fc1.weight"}
_LAYER_PROBLEMS = ("run-unknown", "layer-unknown", "invalid", "store-damaged", "store-unavailable")


@router.get(
    "/runs/{run}/layers/{layer:path}/history",
    response_model=LayerHistory,
    responses=responses(*_LAYER_PROBLEMS, example=_ALONG | _LAYER | _METRIC | _COLUMNS),
)
def get_layer_history(
    request: Request,
    service: InService,
    run: RunName,
    layer: Annotated[str, Path(min_length=1, max_length=256, examples=["fc1.weight"])],
    query: Annotated[HistoryQuery, Query()],
) -> Response:
    """Return one metric of one layer: exact values if they fit in `points`, else buckets."""
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    found = service.store.histories.of_layers(
        run, query.metric, [layer], query.window(query.points)
    )
    names = {"run": run, "layer": layer, "metric": query.metric}
    return answer(request, names | along(found) | columns(found)[0], tag=tag)


@router.get(
    "/runs/{run}/history",
    response_model=LayersHistory,
    responses=responses(
        *_LAYER_PROBLEMS, example=_ALONG | _METRIC | {"layers": [_LAYER | _COLUMNS], "without": []}
    ),
)
def get_layers_history(
    request: Request,
    service: InService,
    run: RunName,
    query: Annotated[LayersHistoryQuery, Query()],
) -> Response:
    """Return one metric of several layers (`layer` repeated) in one answer.

    Layers that the run does not have are in `without`; 404 if it has none of them.
    """
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    asked = list(dict.fromkeys(query.layer))
    layers, found = _of_known(service.store, run, query, asked)
    each = [
        {"layer": layer} | column for layer, column in zip(found.rows, columns(found), strict=True)
    ]
    without = [layer for layer in asked if layer not in layers]
    names = {"run": run, "metric": query.metric}
    content = names | along(found) | {"layers": each, "without": without}
    return answer(request, content, tag=tag)


@router.get(
    "/runs/{run}/scalars/{scalar}/history",
    response_model=ScalarHistory,
    responses=responses(
        "run-unknown",
        "invalid",
        "store-damaged",
        "store-unavailable",
        example=_ALONG | {"scalar": "loss"} | _COLUMNS,
    ),
)
def get_scalar_history(
    request: Request,
    service: InService,
    run: RunName,
    scalar: Annotated[str, Path(pattern=METRIC_PATTERN, examples=["loss"])],
    query: Annotated[ScalarQuery, Query()],
) -> Response:
    """Return a scalar such as the loss; empty if the run never reported it."""
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    found = service.store.histories.of_scalar(run, scalar, query.window(query.points))
    content = {"run": run, "scalar": scalar} | along(found) | columns(found)[0]
    return answer(request, content, tag=tag)


def _of_known(
    store: Store, run: str, query: LayersHistoryQuery, asked: list[str]
) -> tuple[list[str], Buckets]:
    """Return the layers that the run has, and their history. Raises `LayerUnknown` for none."""
    window = query.window(query.points)
    try:
        return asked, store.histories.of_layers(run, query.metric, asked, window)
    except LayerUnknown:
        there = {layer.name for layer in store.histories.latest(run).layers}
        known = [layer for layer in asked if layer in there]
        if not known:
            raise
        return known, store.histories.of_layers(run, query.metric, known, window)


def along(buckets: Buckets) -> dict[str, Any]:
    """Return the fields that all rows share."""
    return {"bucket_steps": buckets.bucket_steps, "steps": buckets.steps.tolist()}


def columns(buckets: Buckets) -> list[dict[str, Any]]:
    """Return each row's numbers; the JSON writer turns non-finite ones into null."""
    parts = zip(
        shortest(buckets.mean),
        shortest(buckets.min),
        shortest(buckets.max),
        buckets.nonfinite.tolist(),
        strict=True,
    )
    return [
        {"mean": mean, "min": low, "max": high, "nonfinite": nonfinite}
        for mean, low, high, nonfinite in parts
    ]
