"""Commands to a running job, sent with each acknowledgement until the job has received them.

The job's user decides the effect: the client calls the handler that was set for the action, at a
step boundary. Without a handler it does nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict

from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import RunName
from snc_service.api.conventions.versions import VersionQuery, listed
from snc_service.api.ingest.body import JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.store.types.records import StoredCommand
from snc_service.wire import CommandAction
from snc_service.wire.checks import printable

router = APIRouter(prefix="/api/v1", tags=["commands"])


def _reason(value: str) -> str:
    return printable(value, "reason", max_bytes=256) if value else value


class AckCommand(BaseModel):
    """A command for the job."""

    id: int
    action: CommandAction
    reason: str


class CommandRequest(BaseModel):
    """The action for the job, and its reason."""

    model_config = ConfigDict(extra="forbid")
    action: CommandAction
    reason: Annotated[str, AfterValidator(_reason)] = ""


class CommandItem(BaseModel):
    """A command; ``seen_at`` is null until the job has received it."""

    id: int
    action: CommandAction
    reason: str
    author: str
    at: str
    seen_at: str | None


class CommandList(BaseModel):
    """A page of a run's commands, the newest first."""

    items: list[CommandItem]
    next: str | None


REQUEST_EXAMPLE = {"action": "checkpoint", "reason": "before the cluster goes down at 18:00"}
ITEM_EXAMPLE: dict[str, Any] = {
    "id": 1,
    **REQUEST_EXAMPLE,
    "author": "anna",
    "at": "2026-03-01T09:41:07.250Z",
    "seen_at": None,
}


def as_ack(command: StoredCommand) -> dict[str, Any]:
    """Return a command in the form for its job."""
    return {"id": command.id, "action": command.action, "reason": command.reason}


def as_item(command: StoredCommand) -> dict[str, Any]:
    """Return the JSON form of a command."""
    return {
        "id": command.id,
        "action": command.action,
        "reason": command.reason,
        "author": command.author,
        "at": rfc3339(command.at),
        "seen_at": None if command.seen_at is None else rfc3339(command.seen_at),
    }


@router.post(
    "/runs/{run}/commands",
    status_code=201,
    response_model=CommandItem,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "run-unknown",
        "run-closed",
        "commands-waiting",
        "run-full",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=ITEM_EXAMPLE,
        status=201,
    ),
)
def send_command(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    wanted: Annotated[CommandRequest, Depends(JsonBody(CommandRequest, REQUEST_EXAMPLE))],
) -> Response:
    """Store a command for a run's job. A command not received by the end of the run is void."""
    command = service.store.commands.add(
        run, wanted.action, wanted.reason, author=access.name, now=service.clock()
    )
    return answer(request, as_item(command), status_code=201)


@router.get(
    "/runs/{run}/commands",
    response_model=CommandList,
    responses=responses(
        "run-unknown",
        "invalid",
        "store-unavailable",
        example={"items": [ITEM_EXAMPLE], "next": None},
    ),
)
def list_commands(
    request: Request, service: InService, run: RunName, query: Annotated[VersionQuery, Query()]
) -> Response:
    """List a run's commands, the newest first, and whether its job has received them."""
    read = partial(service.store.commands.page, run)
    return listed(request, query, read, lambda each: each.id, as_item)
