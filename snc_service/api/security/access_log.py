"""The access log: one line and one count per request, without the text of any header.

Each request has an id: the client's own ``X-Request-ID`` if it is harmless, else a new one. The id
is in the answer and in every log line of the request.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snc_service.api.state import ACCESS
from snc_service.auth import Access
from snc_service.problems import KINDS, Problem

HEADER: Final = "X-Request-ID"
UNMATCHED: Final = "unmatched"  # the route of an unknown URL: a path must not become a label
METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"))
MAX_PATH: Final = 512
REQUEST_ID: ContextVar[str | None] = ContextVar("snc_request_id", default=None)
_HEADER: Final = HEADER.lower().encode()
_ID: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_RANDOM: Final = random.Random()

log = logging.getLogger("snc.access")


class AccessLog:
    """Pure ASGI middleware, the outermost. Logs at INFO; the fields are in ``record.request``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and log it after its answer was sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        told = {"status": 500, "bytes": 0}  # 500: the request ended without an answer
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                told["status"] = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            elif message["type"] == "http.response.body":
                told["bytes"] += len(message.get("body", b""))
            await send(message)

        token = REQUEST_ID.set(request_id)
        start = time.perf_counter()
        try:
            await self.app(scope, receive, send_named)
        except Exception:  # a defect: a report of it can name the request id
            if not started:
                await _defect(request_id)(scope, receive, send_named)
            raise  # the server logs it
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


def _defect(request_id: str) -> Response:
    return Problem(
        "internal",
        KINDS["internal"].meaning,
        headers={"X-Content-Type-Options": "nosniff"},
        request_id=request_id,
    ).response()


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == _HEADER and _ID.fullmatch(value):
            return value.decode()
    return f"{_RANDOM.getrandbits(64):016x}"  # unique, not secret
