"""Silences: events that match them tell nobody until they end."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from snc_service.api.alerting.incidents import Number
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import Comment
from snc_service.api.ingest.body import BODY_PROBLEMS, JsonBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.problems import Problem
from snc_service.store.types.incidents import Silence
from snc_service.wire.checks import printable, shown

MAX_SILENCE_SECONDS = 366 * 86_400

router = APIRouter(prefix="/api/v1", tags=["incidents"])


def _glob(value: str) -> str:
    return printable(value, "pattern", max_bytes=256)


Glob = Annotated[str, AfterValidator(_glob)]


class SilenceRequest(BaseModel):
    """A silence of events that match all four globs. Project: any, or the token's."""

    model_config = ConfigDict(extra="forbid")
    project: Glob | None = None
    run: Glob = "*"
    rule: Glob = "*"
    layer: Glob = "*"
    seconds: float | None = Field(None, gt=0, le=MAX_SILENCE_SECONDS, description="From now on.")
    until: str | None = Field(None, max_length=64, description="RFC 3339, instead of `seconds`.")
    comment: Comment = ""


class SilenceItem(BaseModel):
    """A silence in force."""

    silence: int
    project: str
    run: str
    rule: str
    layer: str
    until: str
    comment: str
    author: str
    at: str


class SilenceList(BaseModel):
    """Every silence in force, the newest first."""

    items: list[SilenceItem]
    next: None


_WISH = {"run": "gpt-small-*", "rule": "breach", "comment": "thresholds are being tuned"}
SILENCE_REQUEST_EXAMPLE = {**_WISH, "seconds": 7200}
SILENCE_EXAMPLE: dict[str, Any] = {
    "silence": 3,
    "project": "*",
    "layer": "*",
    **_WISH,
    "until": "2026-03-01T11:45:00.000Z",
    "author": "anna",
    "at": "2026-03-01T09:45:00.000Z",
}


def silence_item(silence: Silence) -> dict[str, Any]:
    """Return the JSON form of a silence."""
    plain = ("project", "run", "rule", "layer", "comment", "author")
    return {
        "silence": silence.id,
        **{name: getattr(silence, name) for name in plain},
        "until": rfc3339(silence.until),
        "at": rfc3339(silence.at),
    }


@router.get(
    "/silences",
    response_model=SilenceList,
    responses=responses("store-unavailable", example={"items": [SILENCE_EXAMPLE], "next": None}),
)
def list_silences(request: Request, service: InService, access: InAccess) -> Response:
    """List the silences in force."""
    found = service.store.silences.active(service.clock())
    items = [silence_item(each) for each in found if access.project in (None, each.project)]
    return answer(request, {"items": items, "next": None})


@router.post(
    "/silences",
    status_code=201,
    response_model=SilenceItem,
    responses=responses(
        *BODY_PROBLEMS,
        "service-full",
        "invalid",
        "store-unavailable",
        example=SILENCE_EXAMPLE,
        status=201,
    ),
)
def add_silence(
    request: Request,
    service: InService,
    access: InAccess,
    wanted: Annotated[SilenceRequest, Depends(JsonBody(SilenceRequest, SILENCE_REQUEST_EXAMPLE))],
) -> Response:
    """Silence matching events; incidents still open afterwards notify their receivers then.

    A token for one project can silence only that project.
    """
    project = wanted.project or access.project or "*"
    check_project(access, project)
    now = service.clock()
    silence = Silence(
        0,
        project,
        wanted.run,
        wanted.rule,
        wanted.layer,
        _until(wanted, now),
        wanted.comment,
        access.name,
        now,
    )
    return answer(request, silence_item(service.store.silences.add(silence)), status_code=201)


@router.delete(
    "/silences/{silence}",
    status_code=204,
    response_class=Response,
    responses=responses("silence-unknown", "invalid", "store-unavailable"),
)
def delete_silence(service: InService, access: InAccess, silence: Number) -> Response:
    """End a silence now; incidents that it held back and that are still open notify receivers."""
    now = service.clock()
    mine = {
        each.id
        for each in service.store.silences.active(now)
        if access.project in (None, each.project)
    }
    if silence not in mine or not service.store.silences.delete(
        silence, author=access.name, now=now
    ):
        raise Problem("silence-unknown", f"there is no silence {silence} in force", field="silence")
    return Response(status_code=204)


def _until(wanted: SilenceRequest, now: float) -> float:
    if (wanted.seconds is None) == (wanted.until is None):
        raise Problem("invalid", "seconds must be given, or else until, not both", field="seconds")
    return now + wanted.seconds if wanted.seconds is not None else _end(wanted.until or "", now)


def _end(text: str, now: float) -> float:
    try:
        at = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        seconds = at.timestamp() if at.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    if not now < seconds <= now + MAX_SILENCE_SECONDS:
        raise Problem(
            "invalid",
            "until must be a time with its zone, such as 2026-03-01T18:00:00Z, from now to a year "
            f"from now, got {shown(text)}",
            field="until",
        )
    return seconds
