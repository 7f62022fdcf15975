"""The worst layers of a range of steps, by exact values instead of the buckets of a heatmap."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, shortest, unchanged
from snc_service.api.conventions.parameters import MetricName, RunName, WindowQuery
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.store.types import Worst

router = APIRouter(prefix="/api/v1", tags=["layers"])


class WorstQuery(WindowQuery):
    """The metric (or `ratio`, sigma / threshold of one step) and the number of layers."""

    metric: MetricName = "ratio"
    k: int = Field(10, ge=1, le=1_000, description="The most layers.")


class WorstItem(BaseModel):
    """A layer, its largest value and a step with that value; null if no value was finite."""

    layer: str
    value: float | None
    step: int | None
    nonfinite: int


class WorstLayers(BaseModel):
    """Layers, the worst first; those with non-finite values come before all others."""

    run: str
    metric: str
    items: list[WorstItem]


EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "metric": "ratio",
    "items": [
        {"layer": "blocks.0.query.weight", "value": 1.31, "step": 870, "nonfinite": 0},
        {"layer": "blocks.1.query.weight", "value": 1.02, "step": 412, "nonfinite": 0},
    ],
}


@router.get(
    "/runs/{run}/worst",
    response_model=WorstLayers,
    responses=responses(
        "run-unknown",
        "history-thinned",
        "invalid",
        "store-damaged",
        "store-unavailable",
        example=EXAMPLE,
    ),
)
def list_worst(
    request: Request, service: InService, run: RunName, query: Annotated[WorstQuery, Query()]
) -> Response:
    """Return the layers with the largest single values of a metric in a range of steps.

    `metric=ratio` is sigma / threshold of the same step, so each result is a ratio that occurred,
    even if the threshold changed within the range. `nonfinite` counts the values (of sigma, for the
    ratio) that were not finite.
    """
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    ratio = query.metric == "ratio"
    found = service.store.histories.worst(
        run,
        "sigma" if ratio else query.metric,
        query.window(1),
        query.k,
        below="threshold" if ratio else None,
    )
    content = {"run": run, "metric": query.metric, "items": as_items(found)}
    return answer(request, content, tag=tag)


def as_items(found: list[Worst]) -> list[dict[str, Any]]:
    """Return the JSON form, with values to the precision of float32."""
    values = np.array([np.nan if each.value is None else each.value for each in found])
    return [
        {"layer": each.layer, "value": value, "step": each.step, "nonfinite": each.nonfinite}
        for each, value in zip(found, shortest(values.astype(np.float32)), strict=True)
    ]
