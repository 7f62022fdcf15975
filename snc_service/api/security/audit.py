"""Routes for the audit log: changes of policies, tokens, commands and runs, with their authors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import Identifier, ListQuery
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.store.types.records import AuditAction

router = APIRouter(prefix="/api/v1", tags=["audit"])


class AuditQuery(ListQuery):
    """Filters of audit entries."""

    author: Identifier | None = None
    action: AuditAction | None = None
    subject: Identifier | None = None


class AuditItem(BaseModel):
    """One change. ``subject`` is the run, project or token; ``author`` the name of a token."""

    id: int
    at: str
    author: str
    action: AuditAction
    subject: str
    detail: str


class AuditPage(BaseModel):
    """A page of the audit log."""

    items: list[AuditItem]
    next: str | None


EXAMPLE: dict[str, Any] = {
    "id": 12,
    "at": "2026-03-01T09:41:07.250Z",
    "author": "root",
    "action": "run_policy_changed",
    "subject": "gpt-small-1",
    "detail": "version 2",
}


@router.get(
    "/audit",
    response_model=AuditPage,
    responses=responses("invalid", "store-unavailable", example={"items": [EXAMPLE], "next": None}),
)
def list_audit(
    request: Request, service: InService, query: Annotated[AuditQuery, Query()]
) -> Response:
    """List changes with their authors, the newest first."""
    after = cursors.load(query.cursor, int)
    entries, following = service.store.audit.page(
        author=query.author,
        action=query.action,
        subject=query.subject,
        limit=query.limit,
        after=None if after is None else after[0],
    )
    items = [
        {
            "id": entry.id,
            "at": rfc3339(entry.at),
            "author": entry.author,
            "action": entry.action,
            "subject": entry.subject,
            "detail": entry.detail,
        }
        for entry in entries
    ]
    key = None if following is None else (following,)
    return answer(request, {"items": items, "next": cursors.dump(key)})
