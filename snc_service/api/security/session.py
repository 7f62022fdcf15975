"""The page's login: exchanges a token for a cookie that scripts cannot read.

The page needs a cookie because EventSource sends no headers. The cookie holds the token, so every
replica accepts it, and revoking the token ends the session.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.ingest.body import JsonBody
from snc_service.api.security.authentication import COOKIE, identified, unauthorised
from snc_service.api.state import InAccess, InService, Service
from snc_service.api.system.openapi import responses
from snc_service.auth import ANYBODY, Access, TokenRefused, access_of

MAX_SECONDS = 7 * 86_400  # after which the page asks for the token again
MAX_BYTES = 4_096

router = APIRouter(prefix="/api/v1", tags=["session"])


class SessionRequest(BaseModel):
    """The token for a session."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(min_length=1, max_length=256)]


class SessionAnswer(BaseModel):
    """The name and scopes of the client; ``anonymous`` with all scopes if no token is required."""

    name: str
    scopes: list[str]
    project: str | None
    expires_at: str | None
    token_needed: bool


EXAMPLE: dict[str, Any] = {
    "name": "grafana",
    "scopes": ["read"],
    "project": None,
    "expires_at": "2026-06-01T00:00:00.000Z",
    "token_needed": True,
}
REQUEST_EXAMPLE = {"token": "snc_5f0c41d9a2b7_" + 48 * "0"}


@router.get(
    "/session",
    response_model=SessionAnswer,
    responses=responses("token-missing", "token-invalid", example=EXAMPLE),
)
async def get_session(request: Request, service: InService, access: InAccess) -> Response:
    """Return the client by header or cookie; 401 if a required token is missing."""
    if service.tokens.required:
        access = identified(request.headers, service)
    return answer(request, _as_answer(access, service))


@router.post(
    "/session",
    response_model=SessionAnswer,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "token-invalid",
        "cross-origin",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=EXAMPLE,
    ),
)
async def open_session(
    request: Request,
    service: InService,
    wanted: Annotated[
        SessionRequest, Depends(JsonBody(SessionRequest, REQUEST_EXAMPLE, max_bytes=MAX_BYTES))
    ],
) -> Response:
    """Open a session for a browser: the answer sets a cookie that holds the token."""
    await service.tokens.refresh()
    if not service.tokens.required:
        return answer(request, _as_answer(ANYBODY, service))
    try:
        access = access_of(service.tokens.find(wanted.token.strip()))
    except TokenRefused as refused:
        raise unauthorised("token-invalid", str(refused)) from None
    told = answer(request, _as_answer(access, service))
    told.headers["Cache-Control"] = "no-store"
    told.set_cookie(
        COOKIE,
        wanted.token.strip(),
        max_age=_seconds(access, service.clock()),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return told


@router.delete("/session", status_code=204, responses=responses("cross-origin"))
async def close_session(request: Request) -> Response:
    """Delete the cookie. The token stays valid; revoke it to end all its sessions."""
    told = Response(status_code=204)
    told.delete_cookie(
        COOKIE, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return told


def _as_answer(access: Access, service: Service) -> dict[str, Any]:
    token = access.token
    expires_at = token.expires_at if token is not None else None
    return {
        "name": access.name,
        "scopes": sorted(access.scopes),
        "project": access.project,
        "expires_at": None if expires_at is None else rfc3339(expires_at),
        "token_needed": service.tokens.required,
    }


def _seconds(access: Access, now: float) -> int:
    expires_at = access.token.expires_at if access.token is not None else None
    return MAX_SECONDS if expires_at is None else max(1, min(MAX_SECONDS, int(expires_at - now)))
