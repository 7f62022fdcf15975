"""Routes for tokens: create, list, revoke. A secret is shown once, at its creation."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import NAME_PATTERN, Identifier
from snc_service.api.ingest.body import JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.auth import RESERVED, make_token
from snc_service.problems import Problem
from snc_service.store.types.records import Scope, Token

router = APIRouter(prefix="/api/v1", tags=["tokens"])
TokenName = Annotated[
    str, Path(pattern=NAME_PATTERN, description="The token's name.", examples=["grafana"])
]
LAST_SECOND = 253_402_300_800  # the year 10000, beyond the range of RFC 3339


class TokenRequest(BaseModel):
    """A token to create. ``expires_at`` is RFC 3339, null for never; ``project`` null means all."""

    model_config = ConfigDict(extra="forbid")
    name: Identifier
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)]
    project: Identifier | None = None
    expires_at: Annotated[str, Field(max_length=40)] | None = None


class TokenItem(BaseModel):
    """A token in a list, without its secret."""

    name: str
    id: str
    scopes: list[Scope]
    project: str | None
    author: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class TokenCreated(TokenItem):
    """A new token with its secret: keep the secret, it cannot be shown again."""

    token: str


class TokenList(BaseModel):
    """All tokens, the oldest first."""

    items: list[TokenItem]
    next: None


ITEM_EXAMPLE: dict[str, Any] = {
    "name": "grafana",
    "id": "5f0c41d9a2b7",
    "scopes": ["read"],
    "project": None,
    "author": "root",
    "created_at": "2026-03-01T09:30:00.000Z",
    "expires_at": "2100-01-01T00:00:00.000Z",
    "revoked_at": None,
}
REQUEST_EXAMPLE = {
    "name": "grafana",
    "scopes": ["read", "admin"],
    "expires_at": "2100-01-01T00:00:00Z",
}
CREATED_EXAMPLE = ITEM_EXAMPLE | {"token": "snc_5f0c41d9a2b7_" + 48 * "0"}


def as_item(token: Token) -> dict[str, Any]:
    """Return the JSON form of a token."""

    def told(at: float | None) -> str | None:
        return None if at is None else rfc3339(at)

    return {
        "name": token.name,
        "id": token.id,
        "scopes": list(token.scopes),
        "project": token.project,
        "author": token.author,
        "created_at": rfc3339(token.created_at),
        "expires_at": told(token.expires_at),
        "revoked_at": told(token.revoked_at),
    }


@router.post(
    "/tokens",
    status_code=201,
    response_model=TokenCreated,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "token-exists",
        "service-full",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=CREATED_EXAMPLE,
        status=201,
    ),
)
async def create_token(
    request: Request,
    service: InService,
    access: InAccess,
    wanted: Annotated[TokenRequest, Depends(JsonBody(TokenRequest, REQUEST_EXAMPLE))],
) -> Response:
    """Create a token; its secret is only in this answer.

    The first token closes the service to clients without one, so it must have the scope admin.
    """
    if wanted.name in RESERVED:
        raise Problem("invalid", f"name must not be {wanted.name!r}: it is taken", field="name")
    if not service.tokens.required and ("admin" not in wanted.scopes or wanted.project):
        raise Problem(
            "invalid",
            "scopes must include admin, for all projects: the first token closes the service to "
            "everybody without one",
            field="scopes",
        )
    now = service.clock()
    token, secret = make_token(
        wanted.name,
        wanted.scopes,
        project=wanted.project,
        author=access.name,
        now=now,
        expires_at=_expiry(wanted.expires_at, now),
    )
    await run_in_threadpool(service.store.tokens.add, token)
    await service.tokens.refresh(now=True)
    told = answer(request, as_item(token) | {"token": secret}, status_code=201)
    told.headers["Cache-Control"] = "no-store"
    return told


@router.get(
    "/tokens",
    response_model=TokenList,
    responses=responses("store-unavailable", example={"items": [ITEM_EXAMPLE], "next": None}),
)
def list_tokens(request: Request, service: InService) -> Response:
    """List all tokens, including expired and revoked ones."""
    items = [as_item(token) for token in service.store.tokens.all()]
    return answer(request, {"items": items, "next": None})


@router.delete(
    "/tokens/{name}",
    status_code=204,
    responses=responses("token-unknown", "invalid", "store-unavailable"),
)
async def revoke_token(service: InService, access: InAccess, name: TokenName) -> Response:
    """Revoke a token: at once here, within a second on other replicas. Its name stays taken."""
    await run_in_threadpool(
        lambda: service.store.tokens.revoke(name, author=access.name, now=service.clock())
    )
    await service.tokens.refresh(now=True)
    return Response(status_code=204)


def _expiry(text: str | None, now: float) -> float | None:
    """Return Unix seconds. Raises `Problem` (422) for text that is no time, or for a past time."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
        seconds = at.astimezone(timezone.utc).timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        seconds = None
    if seconds is None or not now < seconds < LAST_SECOND:
        raise Problem(
            "invalid",
            f"expires_at must be a time to come, such as 2100-01-01T00:00:00Z, got {text!r}",
            field="expires_at",
        )
    return seconds
