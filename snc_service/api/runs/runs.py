"""Runs: list by a query, count, look at, finish, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Query as Query_
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, etag, is_unchanged, rfc3339, unchanged
from snc_service.api.conventions.parameters import Identifier, ListQuery, Query, RunName
from snc_service.api.ingest.body import JsonBody
from snc_service.api.runs import query_language
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.problems import Problem
from snc_service.store.types import BadEnd, EndState, Run, RunState
from snc_service.store.types.run_search import CONFIG, ORDERS, RunSearch, TextCondition
from snc_service.wire import Severity
from snc_service.wire.checks import shown

router = APIRouter(prefix="/api/v1", tags=["runs"])

MOST_COLUMNS: Final = 16
TEXT_ORDERS: Final = ("name", "project", "state")
LANGUAGE: Final = (
    "Words and conditions that must all hold: `project:gpt tag:base* state:failed "
    "config.lr=0.01 layer:*qkv* loss<2 -name:*debug*`."
)
SORTS: Final = f"One of {', '.join(ORDERS)} or {CONFIG}NAME; `-` before it: descending."


def _path(path: str) -> str:
    if not path or len(path) > 256 or not query_language.is_storable(path):
        raise ValueError(f"must be a path of 1 to 256 letters, got {shown(path)}")
    return path


ConfigPath = Annotated[str, AfterValidator(_path)]


class RunItem(BaseModel):
    """A run in lists. ``worst_ratio`` is over the newest finite values.

    ``started_at`` and ``duration``, seconds, are from the creation of the run to its last report;
    of an imported run they are those of its source, with a duration of null if it has no times.
    """

    run: str
    name: str
    project: str
    state: RunState
    created_at: str
    updated_at: str
    started_at: str
    duration: float | None
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
    loss: float | None
    nonfinite_loss: bool
    ended_in: BadEnd | None
    archived: bool
    note: str
    acknowledged_at: str | None
    acknowledged_by: str | None
    incidents: int
    incident_severity: Severity | None
    config_values: dict[str, Any] = {}


class RunPage(BaseModel):
    """A page of runs, in the order asked for."""

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


class RunFilter(Query):
    """Filters of runs."""

    project: Identifier | None = None
    state: RunState | None = None
    q: str = Field("", description=LANGUAGE, examples=["state:failed config.lr=0.01"])

    @field_validator("q")
    @classmethod
    def _readable(cls, text: str) -> str:
        query_language.read(text)
        return text

    def search(self, project: str | None, **more: Any) -> RunSearch:
        """Return the search, within ``project`` if it is given."""
        query = query_language.read(self.q)
        conditions = [*query.conditions]
        if self.state is not None:
            conditions.append(TextCondition("state", self.state))
        reach = self.project or project
        return RunSearch(tuple(conditions), reach, query.archived, **more)


class RunQuery(RunFilter, ListQuery):
    """Filters, order and columns of the list of runs."""

    sort: str = Field("-created", max_length=256, description=SORTS)
    config: list[ConfigPath] = Field(
        [], max_length=MOST_COLUMNS, description="Paths of config values to show, such as `lr`."
    )

    @field_validator("sort")
    @classmethod
    def _known(cls, sort: str) -> str:
        order = sort.removeprefix("-")
        is_path = order.startswith(CONFIG) and query_language.is_storable(order)
        if order not in ORDERS and not is_path:
            known = f"one of {', '.join(ORDERS)} or {CONFIG}NAME, a - before it for descending"
            raise ValueError(f"must be {known}, got {shown(sort)}")
        return sort


class RunSummaryItem(BaseModel):
    """How many runs a query finds by state, and what there is to ask for."""

    total: int
    states: dict[RunState, int]
    projects: list[str]
    tags: list[str]
    config: list[str]


ITEM_EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "name": "small GPT, warm-up 200",
    "project": "default",
    "state": "active",
    "created_at": "2026-03-01T09:30:00.000Z",
    "updated_at": "2026-03-01T09:41:07.250Z",
    "started_at": "2026-03-01T09:30:00.000Z",
    "duration": 667.25,
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
    "loss": 1.93,
    "nonfinite_loss": False,
    "ended_in": None,
    "archived": False,
    "note": "",
    "acknowledged_at": None,
    "acknowledged_by": None,
    "incidents": 0,
    "incident_severity": None,
    "config_values": {"lr": 0.001},
}
SUMMARY_EXAMPLE: dict[str, Any] = {
    "total": 12,
    "states": {"active": 2, "finished": 10},
    "projects": ["default"],
    "tags": ["baseline"],
    "config": ["lr", "optimizer.name"],
}
DETAIL_EXAMPLE = ITEM_EXAMPLE | {
    "config": {"lr": 0.001},
    "metrics": ["sigma", "threshold"],
    "scalars": ["loss", "lr"],
}


def as_item(run: Run, config: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON form of a run in a list, with the config values at these paths."""
    own = ("tags", "config_values")
    item = {name: getattr(run, name) for name in RunItem.model_fields if name not in own}
    if run.worst_ratio is not None:
        item["worst_ratio"] = float(f"{run.worst_ratio:.7g}")  # the precision of float32
    if run.loss is not None:
        item["loss"] = float(f"{run.loss:.7g}")
    seen = run.acknowledged_at
    times = {
        "created_at": rfc3339(run.created_at),
        "updated_at": rfc3339(run.updated_at),
        "started_at": rfc3339(run.started_at),
        "duration": None if run.duration is None else round(run.duration, 3),
        "acknowledged_at": None if seen is None else rfc3339(seen),
    }
    values = {path: value for path in config if (value := _at(run.config, path)) is not _NOTHING}
    by = {"acknowledged_by": run.acknowledged_by or None}
    return item | times | by | {"tags": list(run.tags), "config_values": values}


_NOTHING: Final = object()


def _at(config: Mapping[str, Any], path: str) -> object:
    """Return the value at a path of names joined by dots; a name may hold dots itself."""
    if path in config:
        return config[path]
    for cut in (place for place, letter in enumerate(path) if letter == "."):
        inner = config.get(path[:cut])
        if isinstance(inner, dict):
            found = _at(inner, path[cut + 1 :])
            if found is not _NOTHING:
                return found
    return _NOTHING


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
    query: Annotated[RunQuery, Query_()],
) -> Response:
    """List runs, the newest first by default; a token for one project lists only that project.

    `sort=-attention` begins with runs that ended badly or go wrong, and that nobody acknowledged.
    Archived runs are listed if `q` says `archived:yes` or `archived:any`.
    """
    if query.project is not None:
        check_project(access, query.project)
    order = query.sort.removeprefix("-")
    page = service.store.runs.search(
        query.search(
            access.project,
            order=order,
            descending=query.sort.startswith("-"),
            limit=query.limit,
            after=_after(query.cursor, order),
        )
    )
    items = [as_item(run, query.config) for run in page.items]
    return answer(request, {"items": items, "next": _cursor(page.next)})


def _cursor(key: tuple[Any, ...] | None) -> str | None:
    """Return a cursor whose parts have one type each, whatever the runs are sorted by."""
    if key is None:
        return None
    run_id, value = key
    is_text = isinstance(value, str)
    return cursors.dump(
        (run_id, int(value is None), 0 if is_text else value or 0, value if is_text else "")
    )


def _after(cursor: str | None, order: str) -> tuple[Any, ...] | None:
    key = cursors.load(cursor, int, int, float, str)
    if key is None:
        return None
    run_id, is_null, number, text = key
    if not query_language.is_storable(text):
        raise Problem("invalid", "cursor must be the `next` of an earlier page", field="cursor")
    return run_id, None if is_null else text if order in TEXT_ORDERS else number


@router.get(
    "/run-summary",
    response_model=RunSummaryItem,
    responses=responses("invalid", "store-unavailable", example=SUMMARY_EXAMPLE),
)
def summarize_runs(
    request: Request,
    service: InService,
    access: InAccess,
    query: Annotated[RunFilter, Query_()],
) -> Response:
    """Count the runs that a query finds, and list projects, tags and config names to ask for."""
    if query.project is not None:
        check_project(access, query.project)
    found = service.store.runs.summary(query.search(access.project))
    content = {
        "total": sum(found.states.values()),
        "states": found.states,
        "projects": list(found.projects),
        "tags": list(found.tags),
        "config": list(found.config),
    }
    return answer(request, content)


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
