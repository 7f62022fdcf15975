"""HEAD for every GET route: the same answer without its body, for probes and caches."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Pure ASGI middleware: calls the GET route, sends its headers and cancels the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a HEAD; pass everything else on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}
        # A stream has no end: it is cancelled once its headers are sent.
        with anyio.CancelScope() as answered:

            async def send_start(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    answered.cancel()

            try:
                await self.app(asked, receive, send_start)
            finally:
                scope["route"] = asked.get("route")  # for the access log
