"""The heatmap: layers x step buckets of one metric, or of sigma / threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, seven_digits, unchanged
from snc_service.api.conventions.parameters import MetricName, RunName, WindowQuery
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.store import Store
from snc_service.store.types import Buckets, Floats, Window
from snc_service.wire import absent

MAX_CELLS: Final = 2_000_000  # of a ratio: 32 bytes each during its computation

router = APIRouter(prefix="/api/v1", tags=["history"])


class HeatmapQuery(WindowQuery):
    """The metric (or `ratio`, sigma / threshold, or `ratio_after`) and the resolution."""

    metric: MetricName = "sigma"
    points: int = Field(500, ge=1, le=1_000, description="The most columns.")
    layers: int = Field(500, ge=1, le=1_000, description="The most rows; more layers share them.")


class Heatmap(BaseModel):
    """Rows in model order. null: not measured, or not finite where ``nonfinite`` counts it.

    ``nonfinite`` is empty if all values are finite.
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
    window = query.window(query.points)
    if query.metric in ("ratio", "ratio_after"):
        after = query.metric == "ratio_after"
        found = ratio_heatmap(service.store, run, window, query.layers, after=after)
    else:
        found = service.store.histories.heatmap(
            run, query.metric, window, query.layers, columns=("max",)
        )
    content = {
        "run": run,
        "metric": query.metric,
        "layers": list(found.rows),
        "bucket_steps": found.bucket_steps,
        "steps": found.steps.tolist(),
        "max": seven_digits(found.max),
        "nonfinite": found.nonfinite.tolist() if found.nonfinite.any() else [],
    }
    return answer(request, content, tag=tag)


def ratio_heatmap(
    store: Store, run: str, window: Window, most: int, *, after: bool = False
) -> Buckets:
    """Return sigma / threshold of every layer; layers that share a row show their largest.

    ``after``: after the action of each step, else before it, as measured.

    Rows are divided before they are merged: the largest sigma and the smallest threshold of a
    merged row may belong to different layers. A very large model gets fewer buckets instead.
    """
    latest = store.histories.latest(run)
    sigmas = latest.metric("sigma")
    measured = [] if sigmas is None else np.flatnonzero(~absent(sigmas)).tolist()
    names = [latest.layers[index].name for index in measured]
    window = replace(window, points=max(1, min(window.points, MAX_CELLS // max(len(names), 1))))
    sigma = store.histories.of_layers(run, "sigma", names, window, columns=("max",))
    ratio = _ratio(
        sigma, store.histories.of_layers(run, "threshold", names, window, columns=("min",))
    )
    if after:
        ratio = _rescaled(
            ratio,
            sigma,
            store.histories.of_layers(run, "scale", names, window, columns=("min", "max")),
        )
    nonfinite = sigma.nonfinite
    rows = tuple(names)
    if len(names) > most:
        per_row = -(-len(names) // most)
        starts = np.arange(0, len(names), per_row)
        ratio = np.fmax.reduceat(ratio, starts, axis=0)
        nonfinite = np.add.reduceat(nonfinite, starts, axis=0)
        groups = [names[start : start + per_row] for start in starts.tolist()]
        rows = tuple(
            g[0] if len(g) == 1 else f"{g[0]} \N{HORIZONTAL ELLIPSIS} {g[-1]}" for g in groups
        )
    return replace(sigma, rows=rows, mean=ratio, min=ratio, max=ratio, nonfinite=nonfinite)


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
