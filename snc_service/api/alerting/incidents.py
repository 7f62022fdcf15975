"""Incidents: what went wrong together, and what people say about it: acknowledged, silenced."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import ListQuery
from snc_service.api.ingest.body import JsonBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.problems import Problem
from snc_service.store.types.incidents import Incident, Silence
from snc_service.wire.checks import printable, shown

MAX_SILENCE_SECONDS = 366 * 86_400
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

router = APIRouter(prefix="/api/v1", tags=["incidents"])

Severity = Literal["info", "warning", "critical"]
State = Literal["open", "resolved", "notice"]
Number = Annotated[int, Path(ge=1, le=2**53 - 1, description="Its number.", examples=[1])]


def _glob(value: str) -> str:
    return printable(value, "pattern", max_bytes=256)


def _comment(value: str) -> str:
    return printable(value, "comment", max_bytes=256) if value else value


Glob = Annotated[str, AfterValidator(_glob)]


class IncidentEvent(BaseModel):
    """An event of an incident."""

    id: int
    step: int
    rule: str
    severity: Severity
    layer: str | None
    layers: int
    value: float | None
    limit: float | None
    message: str
    at: str


class IncidentItem(BaseModel):
    """What went wrong together; ``rule``, ``layer`` and ``step`` are those of the first event."""

    incident: int
    run: str
    project: str
    state: State
    severity: Severity
    rule: str
    layer: str | None
    step: int
    opened_at: str
    updated_at: str
    resolved_at: str | None
    acknowledged_at: str | None
    acknowledged_by: str | None
    events: list[IncidentEvent]
    omitted: int


class IncidentPage(BaseModel):
    """A page of incidents."""

    items: list[IncidentItem]
    next: str | None


class IncidentsQuery(ListQuery):
    """Which incidents."""

    run: Annotated[str, Field(pattern=NAME)] | None = None
    project: Annotated[str, Field(pattern=NAME)] | None = None
    state: State | None = None
    severity: Severity | None = None
    sort: Literal["newest", "severity"] = Field(
        "newest", description="`severity`: the most severe first, among those the newest."
    )


class Acknowledgement(BaseModel):
    """Who acknowledges is known by the token; the comment is for the audit log."""

    model_config = ConfigDict(extra="forbid")
    comment: Annotated[str, AfterValidator(_comment)] = ""


class SilenceRequest(BaseModel):
    """Events that match all four globs tell nobody until then. Project: any, or the token's."""

    model_config = ConfigDict(extra="forbid")
    project: Glob | None = None
    run: Glob = "*"
    rule: Glob = "*"
    layer: Glob = "*"
    seconds: float | None = Field(None, gt=0, le=MAX_SILENCE_SECONDS, description="From now on.")
    until: str | None = Field(None, max_length=64, description="RFC 3339, instead of `seconds`.")
    comment: Annotated[str, AfterValidator(_comment)] = ""


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


INCIDENT_EXAMPLE: dict[str, Any] = {
    "incident": 12,
    "run": "gpt-small-1",
    "project": "default",
    "state": "open",
    "severity": "critical",
    "rule": "sigma_jump",
    "layer": "blocks.0.query.weight",
    "step": 1200,
    "opened_at": "2026-03-01T09:41:07.250Z",
    "updated_at": "2026-03-01T09:41:07.250Z",
    "resolved_at": None,
    "acknowledged_at": None,
    "acknowledged_by": None,
    "events": [
        {
            "id": 7,
            "step": 1200,
            "rule": "sigma_jump",
            "severity": "critical",
            "layer": "blocks.0.query.weight",
            "layers": 2,
            "value": 0.41,
            "limit": 0.1,
            "message": "blocks.0.query.weight: sigma changed by a factor of 1.51 in one step",
            "at": "2026-03-01T09:41:07.250Z",
        }
    ],
    "omitted": 0,
}
PAGE_EXAMPLE = {"items": [INCIDENT_EXAMPLE], "next": None}
ACKNOWLEDGEMENT_EXAMPLE = {"comment": "lowering the learning rate"}
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
_CHANGING = ("body-malformed", "body-slow", "body-too-large", "media-type", "overloaded")


def as_item(incident: Incident) -> dict[str, Any]:
    """Return the JSON form of an incident."""
    first = incident.first
    plain = ("run", "project", "state", "severity", "omitted")
    times = ("opened_at", "updated_at", "resolved_at", "acknowledged_at")
    return {
        "incident": incident.id,
        **{name: getattr(incident, name) for name in plain},
        "rule": first.rule,
        "layer": first.layer,
        "step": first.step,
        **{name: _time(getattr(incident, name)) for name in times},
        "acknowledged_by": incident.acknowledged_by or None,
        "events": [
            {name: getattr(entry, name) for name in IncidentEvent.model_fields if name != "at"}
            | {"at": rfc3339(entry.at)}
            for entry in incident.entries
        ],
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


def _reached(service: InService, access: InAccess, incident: Number) -> Incident:
    """Return an incident that the token reaches; others do not exist for it."""
    found = service.store.incidents.get(incident)
    if found is None or not access.reaches(found.project):
        raise _unknown(incident)
    return found


# Found before a body is read.
Reached = Annotated[Incident, Depends(_reached)]


@router.get(
    "/incidents",
    response_model=IncidentPage,
    responses=responses("invalid", "store-unavailable", example=PAGE_EXAMPLE),
)
def list_incidents(
    request: Request,
    service: InService,
    access: InAccess,
    query: Annotated[IncidentsQuery, Query()],
) -> Response:
    """List incidents; a token for one project sees that project's."""
    if query.project is not None:
        check_project(access, query.project)
    after = cursors.load(query.cursor, int, int)
    found, following = service.store.incidents.page(
        run=query.run,
        project=query.project or access.project,
        state=query.state,
        severity=query.severity,
        sort=query.sort,
        limit=query.limit,
        after=None if after is None else (after[0], after[1]),
    )
    items = [as_item(incident) for incident in found]
    return answer(request, {"items": items, "next": cursors.dump(following)})


@router.get(
    "/incidents/{incident}",
    response_model=IncidentItem,
    responses=responses(
        "incident-unknown", "invalid", "store-unavailable", example=INCIDENT_EXAMPLE
    ),
)
def get_incident(request: Request, found: Reached) -> Response:
    """Return one incident."""
    return answer(request, as_item(found))


@router.post(
    "/incidents/{incident}/acknowledge",
    response_model=IncidentItem,
    responses=responses(
        *_CHANGING, "incident-unknown", "invalid", "store-unavailable", example=INCIDENT_EXAMPLE
    ),
)
def acknowledge_incident(
    request: Request,
    service: InService,
    access: InAccess,
    found: Reached,
    said: Annotated[Acknowledgement, Depends(JsonBody(Acknowledgement, ACKNOWLEDGEMENT_EXAMPLE))],
) -> Response:
    """Say that you look after an incident: nobody is told of it again unless it becomes worse.

    Acknowledging what is acknowledged, or over, changes nothing.
    """
    known = service.store.incidents.acknowledge(
        found.id, author=access.name, now=service.clock(), comment=said.comment
    )
    if known is None:  # deleted with its run, just now
        raise _unknown(found.id)
    return answer(request, as_item(known))


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
        *_CHANGING, "invalid", "store-unavailable", example=SILENCE_EXAMPLE, status=201
    ),
)
def add_silence(
    request: Request,
    service: InService,
    access: InAccess,
    wanted: Annotated[SilenceRequest, Depends(JsonBody(SilenceRequest, SILENCE_REQUEST_EXAMPLE))],
) -> Response:
    """Keep events that match from telling anybody; incidents still open afterwards are told then.

    A token for one project can only silence that.
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
    """End a silence now: what it held back is told if it still stands."""
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


def _unknown(number: int) -> Problem:
    return Problem("incident-unknown", f"there is no incident {number}", field="incident")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


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
