"""The newest values of a run's layers, sorted by ratio or another column."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import (
    Doubles,
    answer,
    etag,
    is_unchanged,
    shortest,
    unchanged,
)
from snc_service.api.conventions.parameters import ListQuery, RunName
from snc_service.api.history.layer_rows import LayerPattern, matching
from snc_service.api.state import InService, Service
from snc_service.api.system.openapi import responses
from snc_service.store.types import LatestValues, Run
from snc_service.wire import absent

METRICS: Final = (
    "sigma",
    "sigma_upper",
    "threshold",
    "scale",
    "residual",
    "frobenius",
    "stable_rank",
    "grad_norm",
    "update_norm",
)
Sort = Literal["-ratio", "ratio", "-sigma", "sigma", "model"]

router = APIRouter(prefix="/api/v1", tags=["layers"])


class LayersQuery(ListQuery):
    """The order of the layers: ``-`` is largest first; non-finite values come first of all.

    Behind the layers with a ratio, `-ratio` has the others by newest / first sigma, or Frobenius
    norm.
    """

    sort: Sort = Field("-ratio", description="`model` is the model's own order.")
    match: LayerPattern = ""


class LayerItem(BaseModel):
    """A layer's newest values. ``nonfinite`` names the values that are null as not finite."""

    layer: str
    kind: str
    shape: list[int]
    step: int | None
    sigma: float | None
    sigma_upper: float | None
    threshold: float | None
    ratio: float | None
    scale: float | None
    residual: float | None
    frobenius: float | None
    stable_rank: float | None
    grad_norm: float | None
    update_norm: float | None
    nonfinite: list[str]
    metrics: dict[str, float | None]


class LayerPage(BaseModel):
    """A page of layers; ``total`` is the number of layers of the run that match."""

    items: list[LayerItem]
    next: str | None
    total: int


ITEM_EXAMPLE: dict[str, Any] = {
    "layer": "blocks.0.query.weight",
    "kind": "linear",
    "shape": [64, 64],
    "step": 1200,
    "sigma": 2.994,
    "sigma_upper": 3.0,
    "threshold": 3.0,
    "ratio": 0.998,
    "scale": 1.0,
    "residual": 0.0004,
    "frobenius": 5.1,
    "stable_rank": 2.9,
    "grad_norm": 0.02,
    "update_norm": 0.001,
    "nonfinite": [],
    "metrics": {},
}


@router.get(
    "/runs/{run}/layers",
    response_model=LayerPage,
    responses=responses(
        "run-unknown",
        "invalid",
        "store-unavailable",
        example={"items": [ITEM_EXAMPLE], "next": None, "total": 1},
    ),
)
def list_layers(
    request: Request, service: InService, run: RunName, query: Annotated[LayersQuery, Query()]
) -> Response:
    """List layers with their newest values."""
    after = cursors.load(query.cursor, int, float, int)
    record = service.store.runs.get(run)
    tag = etag(record, request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    latest = service.store.histories.latest(run)
    grown = _growth(service, record, latest) if query.sort == "-ratio" else None
    group, key = _keys(latest, query.sort, grown)
    order = np.lexsort((np.arange(len(key)), key, group))
    chosen_by_name = matching([layer.name for layer in latest.layers], query.match)
    total = len(chosen_by_name)
    if total < len(latest.layers):
        order = order[np.isin(order, chosen_by_name)]
    if after is not None:
        order = order[_behind(order, group, key, after)]
    chosen = order[: query.limit]
    end = int(chosen[-1]) if len(order) > query.limit else None
    content = {
        "items": as_items(latest, chosen),
        "next": None if end is None else cursors.dump((int(group[end]), float(key[end]), end)),
        "total": total,
    }
    return answer(request, content, tag=tag)


def ratios(latest: LatestValues) -> Doubles:
    """Return sigma / threshold of each layer [L], NaN where one is missing or not finite."""
    sigma, threshold = _column(latest, "sigma"), _column(latest, "threshold")
    with np.errstate(all="ignore"):
        ratio = sigma / threshold
    return np.where(np.isfinite(ratio), ratio, np.nan)


def worst_first(service: Service, run: Run, latest: LatestValues) -> npt.NDArray[np.int64]:
    """Return the layers' indexes: non-finite first, then by ratio, then by growth."""
    group, key = _keys(latest, "-ratio", _growth(service, run, latest))
    return np.lexsort((np.arange(len(key)), key, group)).astype(np.int64)


def as_items(latest: LatestValues, chosen: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the JSON form of some layers."""
    values = latest.values[:, chosen]
    missing, infinite = absent(values), ~np.isfinite(values)
    columns = dict(zip(latest.metrics, shortest(values), strict=True))
    ratio = ratios(latest)[chosen]
    items = []
    for at, index in enumerate(chosen.tolist()):
        layer, step = latest.layers[index], int(latest.steps[index])
        seen = [row for row in range(len(latest.metrics)) if not missing[row, at]]
        known = {latest.metrics[row]: columns[latest.metrics[row]][at] for row in seen}
        items.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "step": step if step >= 0 else None,
                **{name: known.pop(name, None) for name in METRICS},
                "ratio": float(f"{ratio[at]:.7g}"),
                "nonfinite": [latest.metrics[row] for row in seen if infinite[row, at]],
                "metrics": known,
            }
        )
    return items


def _column(latest: LatestValues, metric: str) -> Doubles:
    values = latest.metric(metric)
    if values is None:
        return np.full(len(latest.layers), np.nan)
    return values.astype(np.float64)


def _growth(service: Service, run: Run, latest: LatestValues) -> Doubles | None:
    """Return newest / first norm [L] where some layer has no ratio; else it is not needed."""
    if not np.isnan(ratios(latest)).any():
        return None
    return service.growth.of(service.store, run, latest)


def _keys(
    latest: LatestValues, sort: Sort, grown: Doubles | None = None
) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Return the sort keys of the layers, ascending: a group [L], then a finite key [L]."""
    if sort == "model":
        zeros = np.zeros(len(latest.layers))
        return zeros.astype(np.int64), zeros
    value = ratios(latest) if sort.endswith("ratio") else _column(latest, "sigma")
    sigma = latest.metric("sigma")
    broken = np.zeros(len(value), np.bool_)
    if sigma is not None:
        broken = ~np.isfinite(sigma) & ~absent(sigma)
    norm = latest.metric("frobenius")
    if norm is not None:  # all that there is of a layer without sigma
        unmeasured = True if sigma is None else absent(sigma)
        broken |= unmeasured & ~np.isfinite(norm) & ~absent(norm)
    known = np.isfinite(value)
    if sort.startswith("-"):
        # A non-finite layer is the worst, also where it has no ratio.
        rest = np.zeros(len(value)) if grown is None else -np.nan_to_num(grown)
        return np.where(broken, 0, np.where(known, 1, 2)), np.where(known, -value, rest)
    return np.where(broken, 1, np.where(known, 0, 2)), np.where(known & ~broken, value, 0.0)


def _behind(
    order: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    key: Doubles,
    after: tuple[Any, ...],
) -> npt.NDArray[np.bool_]:
    """Return which of ``order`` come after a key; values may have changed since the last page."""
    at_group, at_key, at_index = after
    g, k = group[order], key[order]
    behind: npt.NDArray[np.bool_] = (
        (g > at_group)
        | ((g == at_group) & (k > at_key))
        | ((g == at_group) & (k == at_key) & (order > at_index))
    )
    return behind
