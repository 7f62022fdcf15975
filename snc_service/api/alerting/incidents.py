"""Incidents: what went wrong together, and who acknowledged it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from snc_service.alerts.naming import confidence, head
from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import Comment, Identifier, ListQuery
from snc_service.api.ingest.body import BODY_PROBLEMS, JsonBody
from snc_service.api.security.authorization import check_project
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.problems import Problem
from snc_service.store.types.incidents import Incident, IncidentOrder, IncidentState
from snc_service.wire import Severity
from snc_service.wire.checks import MAX_WHOLE

router = APIRouter(prefix="/api/v1", tags=["incidents"])

Number = Annotated[int, Path(ge=1, le=MAX_WHOLE, description="Its number.", examples=[1])]


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
    """Related events of a run; ``rule``, ``layer`` and ``step`` are of the event that names it.

    ``confidence`` says how often such events were right; null where nothing is known.
    """

    incident: int
    run: str
    project: str
    state: IncidentState
    severity: Severity
    rule: str
    layer: str | None
    step: int
    opened_at: str
    updated_at: str
    resolved_at: str | None
    acknowledged_at: str | None
    acknowledged_by: str | None
    confidence: str | None
    events: list[IncidentEvent]
    omitted: int


class IncidentPage(BaseModel):
    """A page of incidents."""

    items: list[IncidentItem]
    next: str | None


class IncidentsQuery(ListQuery):
    """Filters of incidents."""

    run: Identifier | None = None
    project: Identifier | None = None
    state: IncidentState | None = None
    severity: Severity | None = None
    sort: IncidentOrder = Field(
        "newest", description="`severity`: the most severe first, among those the newest."
    )


class Acknowledgement(BaseModel):
    """The acknowledgement of an incident: the token gives the author, the comment is for audit."""

    model_config = ConfigDict(extra="forbid")
    comment: Comment = ""


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
    "confidence": "events of sigma_jump were right in 98 of 101 on labelled trainings",
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


def as_item(incident: Incident) -> dict[str, Any]:
    """Return the JSON form of an incident."""
    named = head(incident)
    plain = ("run", "project", "state", "severity", "omitted")
    times = ("opened_at", "updated_at", "resolved_at", "acknowledged_at")
    return {
        "incident": incident.id,
        **{name: getattr(incident, name) for name in plain},
        "rule": named.rule,
        "layer": named.layer,
        "step": named.step,
        **{name: _time(getattr(incident, name)) for name in times},
        "acknowledged_by": incident.acknowledged_by or None,
        "confidence": confidence(incident),
        "events": [
            {name: getattr(entry, name) for name in IncidentEvent.model_fields if name != "at"}
            | {"at": rfc3339(entry.at)}
            for entry in incident.entries
        ],
    }


def _reached(service: InService, access: InAccess, incident: Number) -> Incident:
    """Return an incident that the token reaches; any other is reported as missing."""
    found = service.store.incidents.get(incident)
    if found is None or not access.reaches(found.project):
        raise _unknown(incident)
    return found


# Resolved before a body is read.
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
        *BODY_PROBLEMS, "incident-unknown", "invalid", "store-unavailable", example=INCIDENT_EXAMPLE
    ),
)
def acknowledge_incident(
    request: Request,
    service: InService,
    access: InAccess,
    found: Reached,
    said: Annotated[Acknowledgement, Depends(JsonBody(Acknowledgement, ACKNOWLEDGEMENT_EXAMPLE))],
) -> Response:
    """Acknowledge an incident: its receivers get no further message unless it becomes worse.

    Acknowledging an acknowledged or resolved incident changes nothing.
    """
    known = service.store.incidents.acknowledge(
        found.id, author=access.name, now=service.clock(), comment=said.comment
    )
    if known is None:  # deleted with its run in between
        raise _unknown(found.id)
    return answer(request, as_item(known))


def _unknown(number: int) -> Problem:
    return Problem("incident-unknown", f"there is no incident {number}", field="incident")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)
