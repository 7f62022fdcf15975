"""Routes for the routing of alerts: read, change, state of each receiver, test message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from snc_service.alerts import Alerting, NotDelivered
from snc_service.alerts.receivers import place
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.versions import (
    IfMatch,
    VersionQuery,
    listed,
    seen,
    versioned,
)
from snc_service.api.ingest.body import BODY_PROBLEMS, JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import Responses, responses
from snc_service.problems import Problem, from_wire
from snc_service.store.types import VersionedDocument
from snc_service.wire import SEVERITIES, WireError

router = APIRouter(prefix="/api/v1", tags=["alerts"])

# Checked by `Alerting.parse`, which names the wrong key; docs/alerts.md lists all keys.
ReceiverBody = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["webhook", "slack", "alertmanager", "email"]}},
        }
    ),
]
RouteBody = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "required": ["receivers"],
            "properties": {
                "receivers": {"type": "array", "items": {"type": "string"}},
                "project": {"type": "string", "default": "*"},
                "severity": {"enum": list(SEVERITIES), "default": "warning"},
                "rules": {"type": "array", "items": {"type": "string"}, "default": ["*"]},
                "repeat_seconds": {"type": ["number", "null"], "default": 14400},
                "resolved": {"type": "boolean", "default": True},
            },
        }
    ),
]


class AlertingBody(BaseModel):
    """Receivers by name, and routes: every route that matches an incident adds its receivers."""

    model_config = ConfigDict(extra="forbid")
    receivers: dict[str, ReceiverBody] = Field(default_factory=dict)
    routes: list[RouteBody] = Field(default_factory=list)
    service_url: str | None = None


class AlertingAnswer(BaseModel):
    """The document in force with masked secrets; version 0 is the empty default."""

    alerting: AlertingBody
    alerting_version: int
    author: str
    at: str | None


class AlertingVersions(BaseModel):
    """A page of versions, the newest first."""

    items: list[AlertingAnswer]
    next: str | None


class ReceiverItem(BaseModel):
    """The state of a receiver: waiting deliveries, consecutive failures and the newest error."""

    receiver: str
    type: str
    place: str
    waiting: int
    failures: int
    error: str | None
    told_at: str | None


class ReceiverList(BaseModel):
    """Every receiver of the document in force."""

    items: list[ReceiverItem]
    next: None


class ReceiverTest(BaseModel):
    """The receiver of a test message."""

    model_config = ConfigDict(extra="forbid")
    receiver: str = Field(max_length=64)


class ReceiverTested(BaseModel):
    """The result of a test message."""

    receiver: str
    outcome: Literal["delivered", "failed", "refused"]
    detail: str


BODY_EXAMPLE: dict[str, Any] = {
    "receivers": {
        "team": {"type": "slack", "url": "https://hooks.slack.example/services/T0/B0/x"},
        "pager": {
            "type": "webhook",
            "url": "https://pager.example/hooks/snc",
            "secret": "at least sixteen characters",
        },
    },
    "routes": [
        {"project": "*", "severity": "warning", "receivers": ["team"]},
        {"project": "llm-*", "severity": "critical", "receivers": ["pager"]},
    ],
}
_ROUTE = {"rules": ["*"], "repeat_seconds": 14400.0, "resolved": True}
ANSWER_EXAMPLE: dict[str, Any] = {
    "alerting": {
        "receivers": {
            "team": {"type": "slack", "url": "https://hooks.slack.example/********"},
            "pager": {
                "type": "webhook",
                "url": "https://pager.example/********",
                "secret": "********",
            },
        },
        "routes": [{**route, **_ROUTE} for route in BODY_EXAMPLE["routes"]],
        "service_url": None,
    },
    "alerting_version": 1,
    "author": "anna",
    "at": "2026-03-01T09:30:00.000Z",
}
RECEIVER_EXAMPLE: dict[str, Any] = {
    "receiver": "team",
    "type": "slack",
    "place": "https://hooks.slack.example",
    "waiting": 0,
    "failures": 0,
    "error": None,
    "told_at": "2026-03-01T09:41:07.900Z",
}
TEST_EXAMPLE = {"receiver": "team"}
TESTED_EXAMPLE = {"receiver": "team", "outcome": "delivered", "detail": ""}


def _told(*kinds: str, example: Any) -> Responses:
    return responses(*kinds, "invalid", "store-unavailable", example=example)


@router.get("/alerting", response_model=AlertingAnswer, responses=_told(example=ANSWER_EXAMPLE))
def get_alerting(request: Request, service: InService) -> Response:
    """Return the routing of alerts. Secrets are masked; the document can be changed and put."""
    return _answer(request, service.store.alert_routing.current())


@router.put(
    "/alerting",
    response_model=AlertingAnswer,
    responses=_told("precondition-failed", "service-full", *BODY_PROBLEMS, example=ANSWER_EXAMPLE),
)
def put_alerting(
    request: Request,
    service: InService,
    access: InAccess,
    body: Annotated[AlertingBody, Depends(JsonBody(AlertingBody, BODY_EXAMPLE))],
    if_match: IfMatch = None,
) -> Response:
    """Set the routing of alerts. It also applies to open incidents.

    A masked secret keeps its value while the receiver's address stays the same.
    """
    before = service.store.alert_routing.current()
    version = seen(if_match)
    try:
        alerting = Alerting.parse(body.model_dump(exclude_unset=True), before.content)
    except WireError as error:
        raise from_wire(error) from None
    stored = service.store.alert_routing.put(
        alerting.as_dict(),
        author=access.name,
        now=service.clock(),
        # Masked secrets come from this version: there must be no other in between.
        if_version=before.version if version is None else version,
    )
    return _answer(request, stored)


@router.get(
    "/alerting/versions",
    response_model=AlertingVersions,
    responses=_told(example={"items": [ANSWER_EXAMPLE], "next": None}),
)
def list_alerting_versions(
    request: Request, service: InService, query: Annotated[VersionQuery, Query()]
) -> Response:
    """List the versions of the routing, the newest first."""
    read = service.store.alert_routing.versions
    return listed(request, query, read, lambda each: each.version, _as_answer)


@router.get(
    "/alerting/receivers",
    response_model=ReceiverList,
    responses=_told(example={"items": [RECEIVER_EXAMPLE], "next": None}),
)
def list_receivers(request: Request, service: InService) -> Response:
    """List the receivers with their state."""
    known = {each.receiver: each for each in service.store.deliveries.health()}
    items = []
    for name, receiver in Alerting.parse(
        service.store.alert_routing.current().content
    ).receivers.items():
        health = known.get(name)
        told_at = None if health is None else health.told_at
        items.append(
            {
                "receiver": name,
                "type": receiver.TYPE,
                "place": place(receiver),
                "waiting": 0 if health is None else health.waiting,
                "failures": 0 if health is None else health.failures,
                "error": (health.error if health else "") or None,
                "told_at": None if told_at is None else rfc3339(told_at),
            }
        )
    return answer(request, {"items": items, "next": None})


@router.post(
    "/alerting/test",
    response_model=ReceiverTested,
    responses=_told(*BODY_PROBLEMS, example=TESTED_EXAMPLE),
)
def test_receiver(
    request: Request,
    service: InService,
    wanted: Annotated[ReceiverTest, Depends(JsonBody(ReceiverTest, TEST_EXAMPLE))],
) -> Response:
    """Send a marked test message to one receiver and return the result."""
    content = {"receiver": wanted.receiver, "outcome": "delivered", "detail": ""}
    try:
        service.alerts.test(wanted.receiver)
    except KeyError:
        raise Problem(
            "invalid",
            f"receiver must be one of the routing in force, got {wanted.receiver[:80]!r}",
            field="receiver",
        ) from None
    except NotDelivered as error:
        content.update(outcome=error.outcome, detail=str(error))
    return answer(request, content)


def _as_answer(stored: VersionedDocument[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "alerting": Alerting.parse(stored.content).masked(),
        "alerting_version": stored.version,
        "author": stored.author,
        "at": rfc3339(stored.at) if stored.version else None,
    }


def _answer(request: Request, stored: VersionedDocument[Mapping[str, Any]]) -> Response:
    return versioned(request, stored.version, _as_answer(stored))
