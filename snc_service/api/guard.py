"""Who may talk to a service that asks nobody for a token, and headers that every answer carries."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snc_service.errors import Problem

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


class Guard:
    """Pure ASGI middleware. ``hosts`` are the names served; empty serves any.

    A page of a foreign site can make a browser connect to a loopback address in two ways: under its
    own host name pointed here (refused by name), or openly (its changes are refused by origin).
    """

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

        problem = self._problem(scope["method"], Headers(scope=scope))
        app: ASGIApp = problem.response() if problem is not None else self.app
        await app(scope, receive, send_safe)

    def _problem(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self.hosts and host_name(host) not in self.hosts:
            return Problem(
                "host-refused",
                f"Host must be one of {', '.join(sorted(self.hosts))}, got {host[:80]!r}: "
                f"add it to SNC_ALLOWED_HOSTS",
                field="Host",
            )
        origin = headers.get("origin")
        if method not in SAFE_METHODS and origin is not None and not self._is_own(origin, host):
            return Problem(
                "cross-origin",
                f"Origin must be this service's own, got {origin[:80]!r}",
                field="Origin",
            )
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return bool(netloc) and netloc == host.lower()


def host_name(host: str) -> str:
    """Return the name in a Host header, without port, in lower case."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").lower()
