"""Events of one run and of all runs, the newest first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import ListQuery, MetricName, Name, RunName, Step
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.detect.track_record import record
from snc_service.store.types import EventQuery, StoredEvent
from snc_service.wire import Severity

router = APIRouter(prefix="/api/v1", tags=["events"])


class EventsQuery(ListQuery):
    """Filters of events."""

    rule: MetricName | None = None
    severity: Severity | None = None
    layer: Name | None = None
    from_step: Step | None = None


class RuleRecord(BaseModel):
    """How many ``events`` a rule raised on labelled trainings, and how many of them were right."""

    right: int
    events: int


class EventItem(BaseModel):
    """Something that happened once; ``layer`` is the worst of ``layers`` (a count).

    ``rules_version`` is the version of the rule's settings, null if the event is not from a rule.
    ``record`` is null for rules that count facts, such as a breach.
    """

    run: str
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
    rules_version: int | None
    record: RuleRecord | None


class EventPage(BaseModel):
    """A page of events."""

    items: list[EventItem]
    next: str | None


ITEM_EXAMPLE: dict[str, Any] = {
    "run": "gpt-small-1",
    "id": 7,
    "step": 1200,
    "rule": "breach",
    "severity": "warning",
    "layer": "blocks.0.query.weight",
    "layers": 2,
    "value": 3.2,
    "limit": 3.0,
    "message": "blocks.0.query.weight: sigma 3.20 exceeds its threshold 3.00 (2 layers)",
    "at": "2026-03-01T09:41:07.250Z",
    "rules_version": 0,
    "record": None,
}
PAGE_EXAMPLE = {"items": [ITEM_EXAMPLE], "next": None}


def as_item(stored: StoredEvent) -> dict[str, Any]:
    """Return the JSON form of an event."""
    event = stored.event
    known = record(event.rule)
    return {
        "run": stored.run,
        "id": stored.id,
        "step": event.step,
        "rule": event.rule,
        "severity": event.severity,
        "layer": event.layer,
        "layers": event.layers,
        "value": event.value,
        "limit": event.limit,
        "message": event.message,
        "at": rfc3339(stored.at),
        "rules_version": event.rules_version,
        "record": None if known is None else asdict(known),
    }


@router.get(
    "/runs/{run}/events",
    response_model=EventPage,
    responses=responses("run-unknown", "invalid", "store-unavailable", example=PAGE_EXAMPLE),
)
def list_run_events(
    request: Request, service: InService, run: RunName, query: Annotated[EventsQuery, Query()]
) -> Response:
    """List a run's events."""
    return _list(request, service, query, cursors.load(query.cursor, int), run=run)


@router.get(
    "/events",
    response_model=EventPage,
    responses=responses("invalid", "store-unavailable", example=PAGE_EXAMPLE),
)
def list_events(
    request: Request,
    service: InService,
    access: InAccess,
    query: Annotated[EventsQuery, Query()],
) -> Response:
    """List the events of all runs; a token for one project lists only that project."""
    after = cursors.load(query.cursor, float, int, int)
    return _list(request, service, query, after, project=access.project)


def _list(
    request: Request,
    service: InService,
    query: EventsQuery,
    after: tuple[Any, ...] | None,
    *,
    run: str | None = None,
    project: str | None = None,
) -> Response:
    page = service.store.events.page(
        EventQuery(
            run=run,
            rule=query.rule,
            severity=query.severity,
            layer=query.layer,
            from_step=query.from_step,
            limit=query.limit,
            after=after,
            project=project,
        )
    )
    items = [as_item(stored) for stored in page.items]
    return answer(request, {"items": items, "next": cursors.dump(page.next)})
