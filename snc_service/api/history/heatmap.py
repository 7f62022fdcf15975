"""The heatmap: layers x step buckets of one metric, or of sigma / threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, seven_digits, unchanged
from snc_service.api.conventions.parameters import MetricName, RunName, WindowQuery
from snc_service.api.history import layer_rows
from snc_service.api.history.layer_rows import LayerPattern
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.store import Store
from snc_service.store.types import Buckets, Floats, Window
from snc_service.wire import absent

MAX_CELLS: Final = 2_000_000  # of a ratio: 32 bytes each during its computation
MAX_ROWS: Final = 1_000_000
RATIOS: Final = ("ratio", "ratio_after")

router = APIRouter(prefix="/api/v1", tags=["history"])


class HeatmapQuery(WindowQuery):
    """The metric (or `ratio`, sigma / threshold, or `ratio_after`), the layers, the resolution."""

    metric: MetricName = "sigma"
    points: int = Field(500, ge=1, le=1_000, description="The most columns.")
    layers: int = Field(500, ge=1, le=1_000, description="The most rows; more layers share them.")
    match: LayerPattern = ""
    experts: bool = Field(False, description="One row for the same layer of all experts.")
    from_row: int = Field(0, ge=0, le=MAX_ROWS, description="The first row, if each had its own.")
    to_row: int = Field(MAX_ROWS, ge=0, le=MAX_ROWS, description="The last such row.")


class HeatmapRow(BaseModel):
    """What a row shows: ``layers`` of them, as rows ``first`` to ``last`` if each had its own.

    ``worst`` is its layer with values that are not finite, else with the largest one.
    """

    first: int
    last: int
    layers: int
    worst: str


class Heatmap(BaseModel):
    """Rows in model order. null: not measured, or not finite where ``nonfinite`` counts it.

    ``nonfinite`` is empty if all values are finite. ``total`` is the number of layers that match,
    ``total_rows`` the number of rows if each had its own.
    """

    run: str
    metric: str
    layers: list[str]
    rows: list[HeatmapRow]
    total: int
    total_rows: int
    bucket_steps: int
    steps: list[int]
    max: list[list[float | None]]
    nonfinite: list[list[int]]


EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "metric": "sigma",
    "layers": ["fc1.weight", "fc2.weight"],
    "rows": [
        {"first": 0, "last": 0, "layers": 1, "worst": "fc1.weight"},
        {"first": 1, "last": 1, "layers": 1, "worst": "fc2.weight"},
    ],
    "total": 2,
    "total_rows": 2,
    "bucket_steps": 1,
    "steps": [100, 101],
    "max": [[1.1, 1.2], [2.0, None]],
    "nonfinite": [[0, 0], [0, 1]],
}


@router.get(
    "/runs/{run}/heatmap",
    response_model=Heatmap,
    responses=responses(
        "run-unknown", "invalid", "store-damaged", "store-unavailable", example=EXAMPLE
    ),
)
def get_heatmap(
    request: Request, service: InService, run: RunName, query: Annotated[HeatmapQuery, Query()]
) -> Response:
    """Return the largest value of each layer and bucket of steps, to 7 digits.

    `metric=ratio` divides the largest sigma of a bucket by its smallest threshold: exact while the
    threshold is constant, else an upper bound. `metric=ratio_after` is the ratio after rescales:
    exact for single steps; a longer bucket with a rescale shows at most 1.
    """
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    store = service.store
    names = layers_with(store, run, "sigma" if query.metric in RATIOS else query.metric)
    chosen = [names[place] for place in layer_rows.matching(names, query.match)]
    found = layer_rows.units(chosen, experts=query.experts)
    rows = layer_rows.rows(found, query.from_row, query.to_row, query.layers)
    # Only what is shown is read.
    shown = [place for row in rows for place in row.places]
    moved = {place: i for i, place in enumerate(shown)}
    rows = [replace(row, places=tuple(moved[place] for place in row.places)) for row in rows]
    asked = [chosen[place] for place in shown]
    buckets = of_metric(store, run, query.metric, asked, query.window(query.points))
    values, nonfinite = layer_rows.merged(buckets, rows)
    worst = layer_rows.worst_members(buckets, rows)
    content = {
        "run": run,
        "metric": query.metric,
        "layers": [row.label for row in rows],
        "rows": [
            {"first": row.first, "last": row.last, "layers": len(row.places), "worst": asked[at]}
            for row, at in zip(rows, worst, strict=True)
        ],
        "total": len(chosen),
        "total_rows": len(found),
        "bucket_steps": buckets.bucket_steps,
        "steps": buckets.steps.tolist(),
        "max": seven_digits(values),
        "nonfinite": nonfinite.tolist() if nonfinite.any() else [],
    }
    return answer(request, content, tag=tag)


def layers_with(store: Store, run: str, metric: str) -> list[str]:
    """Return the layers that have reported ``metric``, in model order."""
    latest = store.histories.latest(run)
    values = latest.metric(metric)
    if values is None:
        return []
    return [latest.layers[index].name for index in np.flatnonzero(~absent(values)).tolist()]


def of_metric(store: Store, run: str, metric: str, names: list[str], window: Window) -> Buckets:
    """Return the largest value of each layer and bucket, of a metric or of a ratio.

    A very large model gets fewer buckets instead.
    """
    window = replace(window, points=max(1, min(window.points, MAX_CELLS // max(len(names), 1))))
    if metric not in RATIOS:
        return store.histories.of_layers(run, metric, names, window, columns=("max",))
    sigma = store.histories.of_layers(run, "sigma", names, window, columns=("max",))
    threshold = store.histories.of_layers(run, "threshold", names, window, columns=("min",))
    ratio = _ratio(sigma, threshold)
    if metric == "ratio_after":
        scale = store.histories.of_layers(run, "scale", names, window, columns=("min", "max"))
        ratio = _rescaled(ratio, sigma, scale)
    return replace(sigma, max=ratio)


def _ratio(sigma: Buckets, threshold: Buckets) -> Floats:
    """Return the ratio per layer and bucket of sigma, NaN where there is none.

    Sigma and threshold may have different empty buckets, so each sigma uses the last threshold
    before it.
    """
    before = np.searchsorted(threshold.steps, sigma.steps, side="right") - 1
    limit = np.full(sigma.max.shape, np.nan, np.float32)
    limit[:, before >= 0] = threshold.min[:, before[before >= 0]]
    with np.errstate(all="ignore"):
        ratio = sigma.max / limit
    ratio[~np.isfinite(ratio)] = np.nan
    return ratio


def _rescaled(ratio: Floats, sigma: Buckets, scale: Buckets) -> Floats:
    """Return the ratios after the actions of their steps; no scale means untouched.

    A bucket has its largest sigma and its smallest scale, which may be of different steps. A
    rescale leaves a ratio of at most 1, and steps without one had at most 1 before.
    """
    low, high = np.ones_like(ratio), np.ones_like(ratio)
    _, mine, theirs = np.intersect1d(sigma.steps, scale.steps, return_indices=True)
    low[:, mine], high[:, mine] = scale.min[:, theirs], scale.max[:, theirs]
    left = ratio * high
    # The rounding of two float32 quotients must not turn a met threshold into a breach.
    met = (left < 1 + 1e-6) | (sigma.bucket_steps > 1)
    left = np.where(met, np.minimum(left, 1), left)
    return np.where((low < 1) | (low > 1), left, ratio).astype(np.float32)
