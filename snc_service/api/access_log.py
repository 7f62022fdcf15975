"""One line per request, and one count: who asked what, and what became of it. No header's text.

Each request has an id: the client's own ``X-Request-ID`` where it is harmless, else a new one. It
is in the answer and in every line that is logged on the request's behalf.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snc_service.api.state import ACCESS
from snc_service.auth import Access

HEADER: Final = "X-Request-ID"
UNMATCHED: Final = "unmatched"  # the route of a URL that leads nowhere: paths are no labels
METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"))
MAX_PATH: Final = 512
REQUEST_ID: ContextVar[str | None] = ContextVar("snc_request_id", default=None)
_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")

log = logging.getLogger("snc.access")


class AccessLog:
    """Pure ASGI middleware, the outermost. Logs at INFO; the facts are ``record.request``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and tell of it when its answer is out."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        told = {"status": 500, "bytes": 0}  # 500: it ended without an answer of its own

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            elif message["type"] == "http.response.body":
                told["bytes"] += len(message.get("body", b""))
            await send(message)

        token = REQUEST_ID.set(request_id)
        start = time.perf_counter()
        try:
            await self.app(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - start
            self._tell(scope, request_id, told["status"], told["bytes"], seconds)
            REQUEST_ID.reset(token)

    def _tell(
        self, scope: Scope, request_id: str, status: int, num_bytes: int, seconds: float
    ) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path_format", None) or UNMATCHED
        scope["app"].state.service.exposition.observe_request(route, method, status)
        if not log.isEnabledFor(logging.INFO):
            return
        access: Access | None = scope.get(ACCESS)
        facts: dict[str, Any] = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "path": scope["path"][:MAX_PATH],
            "status": status,
            "bytes": num_bytes,
            "seconds": round(seconds, 6),
            "client": scope["client"][0] if scope.get("client") else None,
            "token": access.name if access is not None else None,
        }
        log.info("%s %s %d", method, route, status, extra={"request": facts})


def _request_id(headers: Headers) -> str:
    given = headers.get(HEADER, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)
