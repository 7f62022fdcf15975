"""Creating a run, or resuming one: what a job does first."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from snc_service.api.conventions.answers import answer
from snc_service.api.conventions.parameters import Identifier
from snc_service.api.ingest.body import JsonBody
from snc_service.api.runs.commands import AckCommand, as_ack
from snc_service.api.runs.policies import POLICY, POLICY_EXAMPLE, PolicyBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService, Service
from snc_service.api.system.openapi import responses
from snc_service.auth import Access
from snc_service.problems import Problem
from snc_service.store.types import RunUnknown
from snc_service.wire.checks import printable

MAX_CONFIG_BYTES = 256 * 1024
CLIENT = "client"  # the author of a first policy if the service requires no token

router = APIRouter(prefix="/api/v1", tags=["runs"])


def _label(value: str) -> str:
    return printable(value, "text", max_bytes=256)


def _storable(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse values that JSON cannot hold: non-finite numbers in any spelling."""
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


class RunCreated(BaseModel):
    """The data for the start or resumption of a job; ``commands`` wait, the oldest first."""

    run: str
    policy: PolicyBody
    policy_version: int
    attempt: int
    last_step: int | None
    commands: list[AckCommand]


REQUEST_EXAMPLE = {
    "run": "gpt-small-1",
    "name": "small GPT, warm-up 200",
    "config": {"lr": 0.001},
    "tags": ["baseline"],
    "policy": POLICY_EXAMPLE,
}
CREATED_EXAMPLE = {
    "run": "gpt-small-1",
    "policy": POLICY_EXAMPLE,
    "policy_version": 1,
    "attempt": 0,
    "last_step": None,
    "commands": [{"id": 1, "action": "checkpoint", "reason": "before the cluster goes down"}],
}


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
    """Create a run, or resume the run with that id. Safe to repeat when an id is given.

    Without a project the run belongs to the project of the token, else to `default`.
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
    return [as_ack(command) for command in service.store.commands.waiting(run)]


def _check_reach(service: Service, access: Access, run: str, project: str) -> None:
    """Raise `Problem` (403) for a project other than the token's, also for an existing run.

    Ids are one name space, so this is the only answer that reveals a run of another project.
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
