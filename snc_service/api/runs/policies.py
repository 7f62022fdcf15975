"""The policy in force, of a run or of a project: read, changed, and who changed it when."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from snc_service.api.conventions.answers import answer
from snc_service.api.conventions.parameters import ProjectName, RunName
from snc_service.api.conventions.versions import CHANGING, IfMatch, origin, seen, versioned
from snc_service.api.ingest.body import JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import Responses, responses
from snc_service.problems import from_wire
from snc_service.store.types import VersionedDocument
from snc_service.wire import Policy, WireError

router = APIRouter(prefix="/api/v1", tags=["policy"])


# Checked by the wire, which knows what it may be and says so in one sentence.
Limit = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}],
            "examples": [2.5, "3x init", "3x rms", None],
        }
    ),
]


class PolicyEntryBody(BaseModel):
    """Layers whose name matches the glob ``pattern`` get this threshold and action."""

    model_config = ConfigDict(extra="forbid")
    pattern: str
    threshold: Limit
    action: Literal["observe", "rescale", "cap", "stop"] = "rescale"


class PolicyBody(BaseModel):
    """Entries in order; the first that matches a layer wins."""

    model_config = ConfigDict(extra="forbid")
    entries: list[PolicyEntryBody] = Field(max_length=1024)


class PolicyAnswer(BaseModel):
    """A policy and where it came from; version 0 is the empty one that nobody set."""

    policy: PolicyBody
    policy_version: int
    scope: Literal["run", "project", "none"]
    author: str
    at: str | None


class PolicyVersions(BaseModel):
    """Every version, the newest first."""

    items: list[PolicyAnswer]
    next: None


POLICY_EXAMPLE = {"entries": [{"pattern": "*", "threshold": "3x init", "action": "rescale"}]}
ANSWER_EXAMPLE = {
    "policy": POLICY_EXAMPLE,
    "policy_version": 2,
    "scope": "run",
    "author": "anna",
    "at": "2026-03-01T09:30:00.000Z",
}


def as_policy(body: PolicyBody) -> Policy:
    """Return the wire's policy. Raises `Problem` (422) naming the entry."""
    try:
        return Policy.parse(body.model_dump())
    except WireError as error:
        raise from_wire(error) from None


def as_answer(stored: VersionedDocument[Policy]) -> dict[str, Any]:
    """Return the JSON form of a stored policy."""
    return {
        "policy": stored.content.as_dict(),
        "policy_version": stored.version,
        **origin(stored),
    }


def _told(*kinds: str, example: Any = ANSWER_EXAMPLE) -> Responses:
    return responses(*kinds, "invalid", "store-unavailable", example=example)


_VERSIONS_EXAMPLE = {"items": [ANSWER_EXAMPLE], "next": None}
NewPolicy = Annotated[PolicyBody, Depends(JsonBody(PolicyBody, POLICY_EXAMPLE))]


@router.get("/runs/{run}/policy", response_model=PolicyAnswer, responses=_told("run-unknown"))
def get_policy(request: Request, service: InService, run: RunName) -> Response:
    """Return the policy in force: the run's own, else its project's, else none."""
    return _answer(request, service.store.policies.of_run(run))


@router.put(
    "/runs/{run}/policy", response_model=PolicyAnswer, responses=_told("run-unknown", *CHANGING)
)
def put_policy(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    body: NewPolicy,
    if_match: IfMatch = None,
) -> Response:
    """Set a run's policy. Its job obeys a few steps later: the policy rides in the next answer."""
    stored = service.store.policies.put_for_run(
        run,
        as_policy(body),
        author=access.name,
        now=service.clock(),
        if_version=seen(if_match),
    )
    return _answer(request, stored)


@router.get(
    "/runs/{run}/policy/versions",
    response_model=PolicyVersions,
    responses=_told("run-unknown", example=_VERSIONS_EXAMPLE),
)
def list_policy_versions(request: Request, service: InService, run: RunName) -> Response:
    """List every version of a run's own policy."""
    return _versions(request, service.store.policies.versions_of_run(run))


@router.get("/projects/{project}/policy", response_model=PolicyAnswer, responses=_told())
def get_project_policy(request: Request, service: InService, project: ProjectName) -> Response:
    """Return the policy of a project's runs that have none of their own."""
    return _answer(request, service.store.policies.of_project(project))


@router.put("/projects/{project}/policy", response_model=PolicyAnswer, responses=_told(*CHANGING))
def put_project_policy(
    request: Request,
    service: InService,
    access: InAccess,
    project: ProjectName,
    body: NewPolicy,
    if_match: IfMatch = None,
) -> Response:
    """Set a project's policy."""
    stored = service.store.policies.put_for_project(
        project,
        as_policy(body),
        author=access.name,
        now=service.clock(),
        if_version=seen(if_match),
    )
    return _answer(request, stored)


@router.get(
    "/projects/{project}/policy/versions",
    response_model=PolicyVersions,
    responses=_told(example=_VERSIONS_EXAMPLE),
)
def list_project_policy_versions(
    request: Request, service: InService, project: ProjectName
) -> Response:
    """List every version of a project's policy."""
    return _versions(request, service.store.policies.versions_of_project(project))


def _answer(request: Request, stored: VersionedDocument[Policy]) -> Response:
    return versioned(request, stored.version, as_answer(stored))


def _versions(request: Request, stored: list[VersionedDocument[Policy]]) -> Response:
    return answer(request, {"items": [as_answer(each) for each in stored], "next": None})
