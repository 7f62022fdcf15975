"""Runs: list, look at, finish, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, etag, is_unchanged, rfc3339, unchanged
from snc_service.api.conventions.parameters import Identifier, ListQuery, RunName
from snc_service.api.ingest.body import JsonBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.store.types import EndState, Run, RunState

router = APIRouter(prefix="/api/v1", tags=["runs"])


class RunItem(BaseModel):
    """A run in lists. ``worst_ratio`` is over the newest finite values."""

    run: str
    name: str
    project: str
    state: RunState
    created_at: str
    updated_at: str
    last_step: int | None
    layers: int
    breaches: int
    rescales: int
    guard_vetoes: int
    dropped_values: int
    worst_ratio: float | None
    worst_layer: str | None
    nonfinite_layers: int
    attempt: int
    overhead: float | None
    tags: list[str]
    version: int


class RunPage(BaseModel):
    """A page of runs, the newest first."""

    items: list[RunItem]
    next: str | None


class RunDetail(RunItem):
    """One run, with its config and the names of its reported metrics and scalars."""

    config: dict[str, Any]
    metrics: list[str]
    scalars: list[str]


class RunEnd(BaseModel):
    """How a run ended."""

    model_config = ConfigDict(extra="forbid")
    state: EndState = "finished"


class RunQuery(ListQuery):
    """Filters of runs."""

    project: Identifier | None = None
    state: RunState | None = None


ITEM_EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "name": "small GPT, warm-up 200",
    "project": "default",
    "state": "active",
    "created_at": "2026-03-01T09:30:00.000Z",
    "updated_at": "2026-03-01T09:41:07.250Z",
    "last_step": 1200,
    "layers": 26,
    "breaches": 3,
    "rescales": 41,
    "guard_vetoes": 0,
    "dropped_values": 0,
    "worst_ratio": 0.998,
    "worst_layer": "blocks.0.query.weight",
    "nonfinite_layers": 0,
    "attempt": 0,
    "overhead": 0.021,
    "tags": ["baseline"],
    "version": 131,
}
DETAIL_EXAMPLE = ITEM_EXAMPLE | {
    "config": {"lr": 0.001},
    "metrics": ["sigma", "threshold"],
    "scalars": ["loss", "lr"],
}


def as_item(run: Run) -> dict[str, Any]:
    """Return the JSON form of a run in a list."""
    item = {name: getattr(run, name) for name in RunItem.model_fields if name != "tags"}
    if run.worst_ratio is not None:
        item["worst_ratio"] = float(f"{run.worst_ratio:.7g}")  # the precision of float32
    times = {"created_at": rfc3339(run.created_at), "updated_at": rfc3339(run.updated_at)}
    return item | times | {"tags": list(run.tags)}


@router.get(
    "/runs",
    response_model=RunPage,
    responses=responses(
        "invalid", "store-unavailable", example={"items": [ITEM_EXAMPLE], "next": None}
    ),
)
def list_runs(
    request: Request,
    service: InService,
    access: InAccess,
    query: Annotated[RunQuery, Query()],
) -> Response:
    """List runs, the newest first; a token for one project lists only that project."""
    if query.project is not None:
        check_project(access, query.project)
    page = service.store.runs.page(
        project=query.project or access.project,
        state=query.state,
        limit=query.limit,
        after=cursors.load(query.cursor, int),
    )
    items = [as_item(run) for run in page.items]
    return answer(request, {"items": items, "next": cursors.dump(page.next)})


@router.get(
    "/runs/{run}",
    response_model=RunDetail,
    responses=responses("run-unknown", "invalid", "store-unavailable", example=DETAIL_EXAMPLE),
)
def get_run(request: Request, service: InService, run: RunName) -> Response:
    """Return one run."""
    found = service.store.runs.get(run)
    tag = etag(found, request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    metrics, scalars = service.store.histories.metrics(run)
    content = as_item(found) | {
        "config": dict(found.config),
        "metrics": list(metrics),
        "scalars": list(scalars),
    }
    return answer(request, content, tag=tag)


@router.post(
    "/runs/{run}/finish",
    response_model=RunItem,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "run-unknown",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=ITEM_EXAMPLE | {"state": "finished"},
    ),
)
def finish_run(
    request: Request,
    service: InService,
    run: RunName,
    end: Annotated[RunEnd, Depends(JsonBody(RunEnd, {"state": "finished"}))],
) -> Response:
    """Close a run. Closing a closed run changes nothing."""
    return answer(request, as_item(service.store.runs.finish(run, end.state, service.clock())))


@router.delete(
    "/runs/{run}",
    status_code=204,
    responses=responses("run-unknown", "invalid", "store-unavailable"),
)
def delete_run(service: InService, access: InAccess, run: RunName) -> None:
    """Delete everything of a run. It cannot be undone."""
    service.store.runs.delete(run, author=access.name, now=service.clock())
