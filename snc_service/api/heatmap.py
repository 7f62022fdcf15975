"""The heatmap: layers x step buckets of one metric, or of sigma / threshold."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.answers import answer, etag, is_unchanged, shortest, unchanged
from snc_service.api.openapi import responses
from snc_service.api.queries import MetricName, RunName, WindowQuery
from snc_service.api.state import InService
from snc_service.store.protocol import Buckets, Store, Window

router = APIRouter(prefix="/api/v1", tags=["history"])


class HeatmapQuery(WindowQuery):
    """Which metric (or `ratio`, sigma / threshold), and how finely."""

    metric: MetricName = "sigma"
    points: int = Field(500, ge=1, le=1_000, description="The most columns.")
    layers: int = Field(500, ge=1, le=1_000, description="The most rows; more layers share them.")


class Heatmap(BaseModel):
    """Rows in model order. null: nothing measured, or not finite where ``nonfinite`` counts it.

    ``nonfinite`` is empty if everything is finite.
    """

    run: str
    metric: str
    layers: list[str]
    bucket_steps: int
    steps: list[int]
    max: list[list[float | None]]
    nonfinite: list[list[int]]


EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "metric": "sigma",
    "layers": ["fc1.weight", "fc2.weight"],
    "bucket_steps": 1,
    "steps": [100, 101],
    "max": [[1.1, 1.2], [2.0, None]],
    "nonfinite": [[0, 0], [0, 1]],
}


@router.get(
    "/runs/{run}/heatmap",
    response_model=Heatmap,
    responses=responses("run-unknown", "invalid", "store-unavailable", example=EXAMPLE),
)
def get_heatmap(
    request: Request, service: InService, run: RunName, query: Annotated[HeatmapQuery, Query()]
) -> Response:
    """Return the largest value of each layer and bucket of steps.

    `metric=ratio` divides the largest sigma of a bucket by the smallest threshold in it: exact
    where the threshold stands, never too small where it moves.
    """
    tag = etag(service.store.run(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    window = query.window(query.points)
    if query.metric == "ratio":
        found = ratio_heatmap(service.store, run, window, query.layers)
    else:
        found = service.store.heatmap(run, query.metric, window, query.layers)
    content = {
        "run": run,
        "metric": query.metric,
        "layers": list(found.rows),
        "bucket_steps": found.bucket_steps,
        "steps": found.steps.tolist(),
        "max": shortest(found.max),
        "nonfinite": found.nonfinite.tolist() if found.nonfinite.any() else [],
    }
    return answer(request, content, tag=tag)


def ratio_heatmap(store: Store, run: str, window: Window, rows: int) -> Buckets:
    """Return sigma / threshold of every layer, layers that share a row by their largest.

    Rows cannot be shared before dividing: the largest sigma and the smallest threshold of a row may
    belong to different layers.
    """
    names = [layer.name for layer in store.latest(run).layers]
    sigma = store.history(run, "sigma", names, window)
    threshold = store.history(run, "threshold", names, window)
    # The threshold in force: both have their own empty buckets, and perhaps their own width.
    at = np.searchsorted(threshold.steps, sigma.steps, side="right") - 1
    limit = np.full(sigma.max.shape, np.nan, np.float32)
    limit[:, at >= 0] = threshold.min[:, at[at >= 0]]
    with np.errstate(all="ignore"):
        ratio = np.where(np.isfinite(sigma.max) & (limit > 0), sigma.max / limit, np.nan)
    starts = np.unique(
        np.arange(min(rows, len(names))) * len(names) // max(min(rows, len(names)), 1)
    )
    if len(starts):
        ratio = np.fmax.reduceat(ratio, starts, axis=0)
    else:
        starts = np.zeros(0, np.int64)
    ratio = ratio.astype(np.float32)
    return Buckets(
        rows=tuple(names[start] for start in starts),
        steps=sigma.steps,
        mean=ratio,
        min=ratio,
        max=ratio,
        nonfinite=np.add.reduceat(sigma.nonfinite, starts, axis=0)
        if len(starts)
        else sigma.nonfinite,
        bucket_steps=sigma.bucket_steps,
    )
