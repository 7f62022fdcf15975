"""Routes for the onset and the forecast: layers that left their band, and crossings to come."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, shortest, unchanged
from snc_service.api.conventions.parameters import Query as Question
from snc_service.api.conventions.parameters import RunName
from snc_service.api.history.layers import ratios
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.detect import onset
from snc_service.detect.forecast import ROWS, crossings, from_step
from snc_service.detect.memory import row_gap
from snc_service.store.types import Window

router = APIRouter(prefix="/api/v1", tags=["layers"])

MOST_LAYERS = 500  # of a forecast: those with the largest ratio
HORIZON_ROWS = 10 * ROWS  # the range of a forecast, ten times the window behind it


class OnsetQuery(Question):
    """The number of layers."""

    limit: int = Field(100, ge=1, le=500)


class OnsetItem(BaseModel):
    """A layer that left its healthy band: step, rule, and value as a multiple of the limit."""

    layer: str
    step: int
    rule: Literal["breach", "update_ratio", "sigma_jump", "sigma_growth", "sigma_vs_init"]
    times_limit: float


class OnsetAnswer(BaseModel):
    """The layers that left their band in the newest incident, by step.

    ``total`` is their number; ``step`` is that of the first, null if no layer ever left. Layers of
    one step are sorted by ``times_limit``, the largest first.
    """

    run: str
    step: int | None
    total: int
    items: list[OnsetItem]
    next: None


class ForecastItem(BaseModel):
    """A layer on its way to its threshold.

    ``steps`` counts from its newest measurement, at the recent slope of log sigma. Half way to the
    crossing, four of five such forecasts lay between a third and twice the true number of steps:
    ``earliest_step`` and ``latest_step``.
    """

    layer: str
    step: int
    sigma: float
    threshold: float
    ratio: float
    growth_per_step: float
    steps: int
    at_step: int
    earliest_step: int
    latest_step: int


class ForecastAnswer(BaseModel):
    """Layers that reach their threshold within ten times the steps looked at, the soonest first."""

    run: str
    items: list[ForecastItem]
    next: None


ONSET_EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "step": 1_204,
    "total": 2,
    "items": [
        {
            "layer": "blocks.0.query.weight",
            "step": 1_204,
            "rule": "sigma_jump",
            "times_limit": 2.31,
        },
        {
            "layer": "blocks.1.query.weight",
            "step": 1_207,
            "rule": "sigma_growth",
            "times_limit": 1.02,
        },
    ],
    "next": None,
}
FORECAST_EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "items": [
        {
            "layer": "blocks.0.query.weight",
            "step": 1_200,
            "sigma": 2.4,
            "threshold": 3.0,
            "ratio": 0.8,
            "growth_per_step": 0.00056,
            "steps": 400,
            "at_step": 1_600,
            "earliest_step": 1_332,
            "latest_step": 2_020,
        }
    ],
    "next": None,
}


@router.get(
    "/runs/{run}/onset",
    response_model=OnsetAnswer,
    responses=responses(
        "run-unknown", "invalid", "store-damaged", "store-unavailable", example=ONSET_EXAMPLE
    ),
)
def get_onset(
    request: Request, service: InService, run: RunName, query: Annotated[OnsetQuery, Query()]
) -> Response:
    """Return the order in which layers left their healthy band."""
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    names = [layer.name for layer in service.store.histories.latest(run).layers]
    left = onset.order(service.store.batches.rule_state(run), names)
    items = [
        {
            "layer": each.layer,
            "step": each.step,
            "rule": each.rule,
            "times_limit": float(f"{each.times_limit:.4g}"),
        }
        for each in left[: query.limit]
    ]
    step = left[0].step if left else None
    content = {"run": run, "step": step, "total": len(left), "items": items, "next": None}
    return answer(request, content, tag=tag)


@router.get(
    "/runs/{run}/forecast",
    response_model=ForecastAnswer,
    responses=responses(
        "run-unknown", "invalid", "store-damaged", "store-unavailable", example=FORECAST_EXAMPLE
    ),
)
def get_forecast(
    request: Request, service: InService, run: RunName, query: Annotated[OnsetQuery, Query()]
) -> Response:
    """Return when layers will reach their thresholds: information, never an alert.

    Covers the 500 layers nearest to their thresholds. Healthy layers drift too, and most slow down.
    """
    tag = etag(service.store.runs.get(run), request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    items = _forecast(service, run)[: query.limit]
    return answer(request, {"run": run, "items": items, "next": None}, tag=tag)


def _forecast(service: InService, run: str) -> list[dict[str, Any]]:
    latest = service.store.histories.latest(run)
    ratio, threshold, sigma = ratios(latest), latest.metric("threshold"), latest.metric("sigma")
    below = np.flatnonzero((ratio > 0) & (ratio < 1))
    if threshold is None or sigma is None or not below.size:
        return []
    chosen = below[np.argsort(-ratio[below], kind="stable")][:MOST_LAYERS]
    gap = row_gap(service.store.batches.rule_state(run))
    window = Window(from_step(int(latest.steps.max()), gap), None, 2 * ROWS)
    names = [latest.layers[i].name for i in chosen]
    past = service.store.histories.of_layers(run, "sigma", names, window)
    slopes, left = crossings(past.steps, past.mean, threshold[chosen])
    soon = np.flatnonzero(left <= HORIZON_ROWS * gap)
    sigmas, thresholds = shortest(sigma[chosen]), shortest(threshold[chosen])
    items = []
    for i in soon[np.argsort(left[soon], kind="stable")].tolist():
        step = int(latest.steps[chosen[i]])
        items.append(
            {
                "layer": names[i],
                "step": step,
                "sigma": sigmas[i],
                "threshold": thresholds[i],
                "ratio": float(f"{ratio[chosen[i]]:.7g}"),
                "growth_per_step": float(f"{slopes[i]:.3g}"),
                "steps": round(left[i]),
                "at_step": step + round(left[i]),
                "earliest_step": step + round(0.33 * left[i]),
                "latest_step": step + round(2.05 * left[i]),
            }
        )
    return items
