"""Rule settings in force, of a run or of a project: read, changed, and who changed them when."""

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
from snc_service.wire import RuleSettings, WireError
from snc_service.wire.rule_settings import MAX_ARMED, MAX_FOR_ROWS, MAX_LIMIT, SEVERITIES

router = APIRouter(prefix="/api/v1", tags=["rules"])

# Checked by `RuleSettings.parse`, which names the key that is wrong.
RuleBody = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "limit": {"type": "number", "minimum": 0, "maximum": MAX_LIMIT},
                "for_rows": {"type": "integer", "minimum": 1, "maximum": MAX_FOR_ROWS},
                "armed": {"type": "integer", "minimum": 0, "maximum": MAX_ARMED},
                "severity": {"enum": list(SEVERITIES)},
                "on": {"type": "boolean"},
            },
        }
    ),
]


class RulesBody(BaseModel):
    """Settings by rule; a rule, or a key of one, that is left out is as shipped."""

    model_config = ConfigDict(extra="forbid")
    rules: dict[str, RuleBody] = Field(default_factory=dict)


class RuleItem(BaseModel):
    """One rule: it fires after ``for_rows`` rows above ``limit``, once armed."""

    limit: float
    for_rows: int
    armed: int
    severity: Literal["info", "warning", "critical"]
    on: bool


class RulesAnswer(BaseModel):
    """Every rule as it is in force, and where that came from; version 0 is as shipped."""

    rules: dict[str, RuleItem]
    rules_version: int
    scope: Literal["run", "project", "none"]
    author: str
    at: str | None


class RulesVersions(BaseModel):
    """Every version, the newest first."""

    items: list[RulesAnswer]
    next: None


BODY_EXAMPLE: dict[str, Any] = {
    "rules": {
        "sigma_growth": {"limit": 0.5, "for_rows": 3, "severity": "critical"},
        "lr_jump": {"on": False},
    }
}
ANSWER_EXAMPLE: dict[str, Any] = {
    "rules": RuleSettings.parse(BODY_EXAMPLE).as_dict()["rules"],
    "rules_version": 2,
    "scope": "run",
    "author": "anna",
    "at": "2026-03-01T09:30:00.000Z",
}
_VERSIONS_EXAMPLE = {"items": [ANSWER_EXAMPLE], "next": None}
NewRules = Annotated[RulesBody, Depends(JsonBody(RulesBody, BODY_EXAMPLE))]


def _told(*kinds: str, example: Any = ANSWER_EXAMPLE) -> Responses:
    return responses(*kinds, "invalid", "store-unavailable", example=example)


@router.get("/runs/{run}/rules", response_model=RulesAnswer, responses=_told("run-unknown"))
def get_rules(request: Request, service: InService, run: RunName) -> Response:
    """Return the settings in force: the run's own, else its project's, else as shipped."""
    return _answer(request, service.store.rule_settings.of_run(run))


@router.put(
    "/runs/{run}/rules", response_model=RulesAnswer, responses=_told("run-unknown", *CHANGING)
)
def put_rules(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    body: NewRules,
    if_match: IfMatch = None,
) -> Response:
    """Set a run's rules: the whole of them, from the next batch on, whichever service stores it."""
    stored = service.store.rule_settings.put_for_run(
        run,
        _settings(body),
        author=access.name,
        now=service.clock(),
        if_version=seen(if_match),
    )
    return _answer(request, stored)


@router.get(
    "/runs/{run}/rules/versions",
    response_model=RulesVersions,
    responses=_told("run-unknown", example=_VERSIONS_EXAMPLE),
)
def list_rule_versions(request: Request, service: InService, run: RunName) -> Response:
    """List every version of a run's own settings."""
    return _versions(request, service.store.rule_settings.versions_of_run(run))


@router.get("/projects/{project}/rules", response_model=RulesAnswer, responses=_told())
def get_project_rules(request: Request, service: InService, project: ProjectName) -> Response:
    """Return the settings of a project's runs that have none of their own."""
    return _answer(request, service.store.rule_settings.of_project(project))


@router.put("/projects/{project}/rules", response_model=RulesAnswer, responses=_told(*CHANGING))
def put_project_rules(
    request: Request,
    service: InService,
    access: InAccess,
    project: ProjectName,
    body: NewRules,
    if_match: IfMatch = None,
) -> Response:
    """Set a project's rules."""
    stored = service.store.rule_settings.put_for_project(
        project,
        _settings(body),
        author=access.name,
        now=service.clock(),
        if_version=seen(if_match),
    )
    return _answer(request, stored)


@router.get(
    "/projects/{project}/rules/versions",
    response_model=RulesVersions,
    responses=_told(example=_VERSIONS_EXAMPLE),
)
def list_project_rule_versions(
    request: Request, service: InService, project: ProjectName
) -> Response:
    """List every version of a project's settings."""
    return _versions(request, service.store.rule_settings.versions_of_project(project))


def _settings(body: RulesBody) -> RuleSettings:
    try:
        return RuleSettings.parse(body.model_dump())
    except WireError as error:
        raise from_wire(error) from None


def _as_answer(stored: VersionedDocument[RuleSettings]) -> dict[str, Any]:
    return {
        **stored.content.as_dict(),
        "rules_version": stored.version,
        **origin(stored),
    }


def _answer(request: Request, stored: VersionedDocument[RuleSettings]) -> Response:
    return versioned(request, stored.version, _as_answer(stored))


def _versions(request: Request, stored: list[VersionedDocument[RuleSettings]]) -> Response:
    return answer(request, {"items": [_as_answer(each) for each in stored], "next": None})
