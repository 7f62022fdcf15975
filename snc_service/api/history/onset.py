"""Routes for the onset and the forecast: layers that left their band, and crossings to come."""

from __future__ import annotations

from collections.abc import Sequence
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
NEAR_ROWS = 200  # between alarms of layers that are traced back together
MOST_READS = 10  # for the layers of one onset
MOST_LOOKS = 8  # for the distance of its rows
HORIZON_ROWS = 10 * ROWS  # the range of a forecast, ten times the window behind it


class OnsetQuery(Question):
    """The number of layers."""

    limit: int = Field(100, ge=1, le=500)


class OnsetItem(BaseModel):
    """A layer that left its healthy band at ``step``, traced back from ``alarm_step``.

    At ``alarm_step`` the rule first fired for it, with the value as a multiple of its limit.
    """

    layer: str
    step: int
    alarm_step: int
    rule: Literal["breach", "update_ratio", "sigma_jump", "sigma_growth", "sigma_vs_init"]
    times_limit: float


class OnsetAnswer(BaseModel):
    """The layers that left their band in the newest incident, by step.

    ``total`` is their number; ``step`` is that of the first, null if no layer ever left, and
    ``alarm_step`` the earliest at which a rule fired for one of them, as an incident names it.
    Layers of one step are in the order of their alarms, then by ``times_limit``.
    """

    run: str
    step: int | None
    alarm_step: int | None
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
    "alarm_step": 1_204,
    "total": 2,
    "items": [
        {
            "layer": "blocks.0.query.weight",
            "step": 1_204,
            "alarm_step": 1_204,
            "rule": "sigma_jump",
            "times_limit": 2.31,
        },
        {
            "layer": "blocks.1.query.weight",
            "step": 1_207,
            "alarm_step": 1_231,
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
    state = service.store.batches.rule_state(run)
    left = onset.order(state, names)
    began = _traced(service, run, left, row_gap(state))
    items = [
        {
            "layer": each.layer,
            "step": step,
            "alarm_step": each.step,
            "rule": each.rule,
            "times_limit": float(f"{each.times_limit:.4g}"),
        }
        for step, each in sorted(zip(began, left, strict=True), key=lambda pair: pair[0])
    ]
    content = {
        "run": run,
        "step": min(began, default=None),
        "alarm_step": left[0].step if left else None,
        "total": len(left),
        "items": items[: query.limit],
        "next": None,
    }
    return answer(request, content, tag=tag)


def _traced(service: InService, run: str, left: Sequence[onset.Left], gap: int) -> list[int]:
    """Return where each layer left its band; layers beyond the first 500 did so at their alarm.

    One read serves the layers whose alarms are near each other, and there are ten at most: what
    they do not reach left its band at its alarm.
    """
    metrics, _ = service.store.histories.metrics(run)
    metric = "sigma" if "sigma" in metrics else "frobenius"
    found = [each.step for each in left]
    gap = _gap_at(service, run, metric, left[0], gap) if left else gap
    begin, most = 0, min(len(left), MOST_LAYERS)
    for _ in range(MOST_READS):
        if begin == most:
            break
        last = left[begin].step + NEAR_ROWS * gap
        end = next((i for i in range(begin, most) if left[i].step > last), most)
        first = max(0, left[begin].step - onset.TRACED_ROWS * gap)
        window = Window(first, left[end - 1].step, onset.TRACED_ROWS + NEAR_ROWS + 1)
        names = [each.layer for each in left[begin:end]]
        past = service.store.histories.of_layers(run, metric, names, window, columns=("mean",))
        found[begin:end] = [
            onset.traced(past.steps, sigma, each.step)
            for sigma, each in zip(past.mean, left[begin:end], strict=True)
        ]
        begin = end
    return found


def _gap_at(service: InService, run: str, metric: str, left: onset.Left, gap: int) -> int:
    """Return the steps between rows before an alarm; ``gap`` is that of the newest rows."""
    for _ in range(MOST_LOOKS):
        first = max(0, left.step - onset.TRACED_ROWS * gap)
        window = Window(first, left.step, onset.TRACED_ROWS + 1)
        past = service.store.histories.of_layers(
            run, metric, [left.layer], window, columns=("mean",)
        )
        if past.bucket_steps > 1:
            gap = max(1, gap // 8)
        elif len(past.steps) > 1:
            return max(1, int(np.median(np.diff(past.steps))))
        elif first == 0:
            break
        else:
            gap *= 8
    return gap


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
