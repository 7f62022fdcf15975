"""Runs: create or resume, list, look at, finish, delete."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, etag, is_unchanged, rfc3339, unchanged
from snc_service.api.conventions.parameters import Identifier, ListQuery, RunName
from snc_service.api.ingest.body import JsonBody
from snc_service.api.runs.policies import POLICY, PolicyBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService, Service
from snc_service.api.system.openapi import responses
from snc_service.auth import Access
from snc_service.problems import Problem
from snc_service.store.types import EndState, Run, RunState, RunUnknown
from snc_service.store.types.records import StoredCommand
from snc_service.wire import CommandAction
from snc_service.wire.checks import printable

MAX_CONFIG_BYTES = 256 * 1024
CLIENT = "client"  # the author of a first policy while the service asks nobody for a token

router = APIRouter(prefix="/api/v1", tags=["runs"])


def _label(value: str) -> str:
    return printable(value, "text", max_bytes=256)


def _storable(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what JSON cannot hold: numbers that are not finite, however they were written."""
    try:
        size = len(json.dumps(config, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        raise ValueError("must be JSON with finite numbers") from None
    if size > MAX_CONFIG_BYTES:
        raise ValueError(f"must be at most {MAX_CONFIG_BYTES} bytes, got {size}")
    return config


Label = Annotated[str, AfterValidator(_label)]


class RunRequest(BaseModel):
    """A run to create, or to resume if the id exists."""

    model_config = ConfigDict(extra="forbid")
    run: Identifier | None = None
    name: Label | None = None
    project: Identifier | None = None
    config: Annotated[dict[str, JsonValue], AfterValidator(_storable)] = Field(default_factory=dict)
    tags: list[Label] = Field(default_factory=list, max_length=64)
    policy: PolicyBody | None = None


class AckCommand(BaseModel):
    """What somebody asks of the job."""

    id: int
    action: CommandAction
    reason: str


class RunCreated(BaseModel):
    """What a client needs to start or to go on; ``commands`` wait for it, the oldest first."""

    run: str
    policy: PolicyBody
    policy_version: int
    attempt: int
    last_step: int | None
    commands: list[AckCommand]


class RunItem(BaseModel):
    """A run as lists show it. ``worst_ratio`` is over the newest finite values."""

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
    """One run, with its config and the names of what it has reported."""

    config: dict[str, Any]
    metrics: list[str]
    scalars: list[str]


class RunEnd(BaseModel):
    """How a run ended."""

    model_config = ConfigDict(extra="forbid")
    state: EndState = "finished"


class RunQuery(ListQuery):
    """Which runs."""

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
REQUEST_EXAMPLE = {
    "run": "gpt-small-1",
    "name": "small GPT, warm-up 200",
    "config": {"lr": 0.001},
    "tags": ["baseline"],
    "policy": {"entries": [{"pattern": "*", "threshold": "3x init", "action": "rescale"}]},
}
CREATED_EXAMPLE = {
    "run": "gpt-small-1",
    "policy": REQUEST_EXAMPLE["policy"],
    "policy_version": 1,
    "attempt": 0,
    "last_step": None,
    "commands": [{"id": 1, "action": "checkpoint", "reason": "before the cluster goes down"}],
}


def as_item(run: Run) -> dict[str, Any]:
    """Return the JSON form of a run in a list."""
    item = {name: getattr(run, name) for name in RunItem.model_fields if name != "tags"}
    if run.worst_ratio is not None:
        item["worst_ratio"] = float(f"{run.worst_ratio:.7g}")  # float32 has no more digits
    times = {"created_at": rfc3339(run.created_at), "updated_at": rfc3339(run.updated_at)}
    return item | times | {"tags": list(run.tags)}


@router.post(
    "/runs",
    status_code=201,
    response_model=RunCreated,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "quota-exceeded",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=CREATED_EXAMPLE,
        status=201,
    )
    | {200: {"description": "The run exists: it is resumed.", "model": RunCreated}},
)
def create_run(
    request: Request,
    service: InService,
    access: InAccess,
    wanted: Annotated[RunRequest, Depends(JsonBody(RunRequest, REQUEST_EXAMPLE))],
) -> Response:
    """Create a run, or resume the one of that id. Safe to repeat when an id is given.

    Without a project it belongs to that of the token, else to `default`.
    """
    name = wanted.run or secrets.token_hex(6)
    project = wanted.project or access.project or "default"
    _check_reach(service, access, name, project)
    is_token = access.token is not None
    run, is_new = service.store.runs.create(
        name,
        name=wanted.name or name,
        project=project,
        config=wanted.config,
        tags=wanted.tags,
        policy=POLICY.parsed(wanted.policy) if wanted.policy else None,
        now=service.clock(),
        author=access.name if is_token else CLIENT,
        quota=service.limits.token_runs if is_token else None,
    )
    stored = service.store.policies.of_run(name)
    content = {
        "run": name,
        "policy": stored.content.as_dict(),
        "policy_version": stored.version,
        "attempt": run.attempt,
        "last_step": run.last_step,
        "commands": _waiting(service, name) if not is_new else [],
    }
    told = answer(request, content, status_code=201 if is_new else 200)
    told.headers["Location"] = f"/api/v1/runs/{name}"
    return told


def _waiting(service: Service, run: str) -> list[dict[str, Any]]:
    commands = reversed(service.store.commands.of_run(run))
    return [as_ack(command) for command in commands if command.seen_at is None]


def as_ack(command: StoredCommand) -> dict[str, Any]:
    """Return a command as its job gets it."""
    return {"id": command.id, "action": command.action, "reason": command.reason}


def _check_reach(service: Service, access: Access, run: str, project: str) -> None:
    """Raise `Problem` (403) for another project than the token's, also that of an existing run.

    Ids are one name space, so this is the one answer that tells a token of a foreign run.
    """
    check_project(access, project)
    try:
        owner = service.store.runs.project_of(run)
    except RunUnknown:
        return
    if not access.reaches(owner):
        raise Problem(
            "project-refused",
            f"run must be an id that no other project uses, got {run!r}",
            field="run",
        )


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
    """List runs, the newest first; a token for one project sees that one's."""
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
    """Delete everything of a run. There is no way back."""
    service.store.runs.delete(run, author=access.name, now=service.clock())
