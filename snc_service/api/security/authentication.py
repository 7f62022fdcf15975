"""Authentication: identifies the client before any route runs or any body is read.

Without any token in the store the service is open, and the danger is a browser. A page of another
site can make it connect to a loopback address, either under the site's own host name (refused by
name) or directly (its changes are refused by origin). Once there is a token, every client needs
one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snc_service.api.security.authorization import SESSION_PATH, is_open
from snc_service.api.state import ACCESS, Service
from snc_service.auth import ANYBODY, SECRET, Access, TokenRefused, access_of
from snc_service.problems import Problem, from_store
from snc_service.store.types import StoreError

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
COOKIE = "snc_session"
_OUR_COOKIE = re.compile(rf'{COOKIE}="?({SECRET.pattern})(?![^"; ])')
CHALLENGE = 'Bearer realm="snc"'
NOBODY = Access("anonymous", frozenset())  # on an open path while others need a token
MAX_PARAMETERS = 1_024  # in a URL; a history asks for 500 layers at most


class AuthenticationMiddleware:
    """Pure ASGI middleware. ``hosts`` are the names served without tokens; empty serves any."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        service: Service = scope["app"].state.service
        with ExitStack() as stack:
            app = self.app
            try:
                access = scope[ACCESS] = await self._admitted(scope, service)
                if share := service.shares.of(access):
                    share.ask()
                    stack.enter_context(share.answering())
            except Problem as problem:
                app = problem.response()
            except StoreError as error:
                app = from_store(error).response()
            await app(scope, receive, send_safe)

    async def _admitted(self, scope: Scope, service: Service) -> Access:
        """Return the access of a request. Raises `Problem`."""
        _bound_query(scope)
        _without_other_cookies(scope)
        headers = Headers(scope=scope)
        path_is_open = is_open(scope["path"])
        if not path_is_open or scope["path"] == SESSION_PATH:  # a probe does not touch the disk
            await service.tokens.refresh()
        if not service.tokens.required:
            self._check_host(headers.get("host", ""))
        self._check_origin(scope["method"], headers)
        if not service.tokens.required:
            return ANYBODY
        try:
            return identified(headers, service)
        except Problem:
            if path_is_open:
                return NOBODY
            raise

    def _check_host(self, host: str) -> None:
        if self.hosts and host_name(host) not in self.hosts:
            raise Problem(
                "host-refused",
                f"Host must be one of {', '.join(sorted(self.hosts))}, got {host[:80]!r}: "
                f"add it to SNC_ALLOWED_HOSTS",
                field="Host",
            )

    def _check_origin(self, method: str, headers: Headers) -> None:
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin is None:
            return
        if not _is_own(origin, headers.get("host", "")):
            raise Problem(
                "cross-origin",
                f"Origin must be this service's own, got {origin[:80]!r}",
                field="Origin",
            )


def identified(headers: Headers, service: Service) -> Access:
    """Return the access of a request's token. Raises `Problem` (401) with the challenge.

    The header takes precedence over the cookie, which is only for the page. URLs carry no tokens.
    """
    given = headers.getlist("authorization")
    if given:
        scheme, _, secret = given[0].strip().partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer":
            raise unauthorised("token-missing", "Authorization must be one Bearer <token>")
    else:
        secret = _cookie(headers)
    if not secret.strip():
        raise unauthorised("token-missing", "a token must be sent as Authorization: Bearer <token>")
    try:
        return access_of(service.tokens.find(secret.strip()))
    except TokenRefused as refused:
        raise unauthorised("token-invalid", str(refused)) from None


def unauthorised(kind: str, detail: str) -> Problem:
    """Return a 401 that states how to authenticate."""
    more = ', error="invalid_token"' if kind == "token-invalid" else ""
    return Problem(kind, detail, headers={"WWW-Authenticate": CHALLENGE + more})


def _bound_query(scope: Scope) -> None:
    """Refuse more parameters than any route reads; nothing that is open to everybody reads one."""
    if is_open(scope["path"]):
        scope["query_string"] = b""
    elif scope["query_string"].count(b"&") >= MAX_PARAMETERS:
        raise Problem("invalid", f"a URL must have at most {MAX_PARAMETERS} parameters")


def _cookie(headers: Headers) -> str:
    """Return the token in the cookies; what has not the form of one is no cookie of ours."""
    for text in headers.getlist("cookie"):
        for found in _OUR_COOKIE.finditer(text):
            if text[found.start() - 1 : found.start()] in ("", ";", " "):
                return found[1]
    return ""


def _without_other_cookies(scope: Scope) -> None:
    """Leave no cookie but ours.

    The framework reads all cookies for every route, with the standard library's reader: un-quoting
    takes it a time that grows with the square of their length.
    """
    given = scope["headers"]
    if any(name == b"cookie" for name, _ in given):
        headers = [pair for pair in given if pair[0] != b"cookie"]
        if secret := _cookie(Headers(scope=scope)):
            headers.append((b"cookie", f"{COOKIE}={secret}".encode()))
        scope["headers"] = headers


def _is_own(origin: str, host: str) -> bool:
    try:
        netloc = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return bool(netloc) and netloc == host.lower()


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port and in lower case."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").lower()
