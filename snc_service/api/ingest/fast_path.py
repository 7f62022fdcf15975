"""The fast path for binary batches: it bypasses the framework, but no check.

Most requests are plain batches. Their routing and parameter parsing in the framework cost several
times as much as decoding them. Any unusual request, even with an unusual spelling of a header,
takes the normal path and gets the framework's answer.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from snc_service.api.ingest.batches import ClientState, acknowledged, router
from snc_service.api.security.authorization import authorised
from snc_service.problems import Problem, from_store
from snc_service.store.types import StoreError
from snc_service.wire import MAX_STEP, MEDIA_TYPE, RUN_NAME

ROUTE: Final = "post_batch"
_PATH: Final = re.compile(rf"/api/v1/runs/({RUN_NAME.pattern})/batches")
_NUMBER: Final = re.compile(rb"[0-9]{1,16}")
_TYPE: Final = MEDIA_TYPE.encode()
_TOLD: Final = {b"snc-policy-version": "policy_version", b"snc-commands-seen": "commands_seen"}


class ShortCut:
    """Pure ASGI middleware, the innermost: the request is authenticated, its body unread."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        (self._route,) = [r for r in router.routes if isinstance(r, Route) and r.name == ROUTE]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Store a plain batch, or pass a request on."""
        plain = _plain(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if plain is None:
            await self.app(scope, receive, send)
            return
        run, told = plain
        scope["route"], scope["path_params"] = self._route, {"run": run}
        request, service = Request(scope, receive), scope["app"].state.service
        try:
            await authorised(request, service)
            response = await acknowledged(request, service, run, told, is_json=False)
        except Problem as problem:
            response = problem.response()
        except StoreError as error:
            response = from_store(error).response()
        await response(scope, receive, send)


def _plain(scope: Scope) -> tuple[str, ClientState] | None:
    """Return the run of a plain binary batch and the state in its headers, else None."""
    path = _PATH.fullmatch(scope["path"])
    if path is None or scope["query_string"] or scope.get("root_path"):
        return None
    found: dict[str, int] = {}
    is_binary = False
    for name, value in scope["headers"]:
        if name == b"content-type":
            if is_binary or value != _TYPE:
                return None
            is_binary = True
        elif name == b"content-encoding":
            return None
        elif name in _TOLD:
            key = _TOLD[name]
            if key in found or not _NUMBER.fullmatch(value) or int(value) > MAX_STEP:
                return None
            found[key] = int(value)
    return (path[1], ClientState(**found)) if is_binary else None
