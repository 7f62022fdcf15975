"""Problems: all error answers of the service, RFC 9457 ``application/problem+json``.

`KINDS` is the only table of stable types. A route declares the kinds it may answer, and OpenAPI
lists exactly those. `Problem` may be raised anywhere below a route.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from snc_service.store.types import (
    BoundReached,
    CommandsWaiting,
    HistoryThinned,
    LayerTableMismatch,
    LayerTableUnknown,
    LayerUnknown,
    QuotaExceeded,
    RunClosed,
    RunUnknown,
    SequenceConflict,
    SequenceGap,
    ServiceFull,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TokenExists,
    TokenUnknown,
    VersionConflict,
)
from snc_service.wire import WireError
from snc_service.wire.checks import shown

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"
RETRY_AFTER_SECONDS = "2"

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """One type of problem; ``meaning`` states its cause and cure."""

    status: int
    title: str
    meaning: str


KINDS: Mapping[str, Kind] = {
    "body-malformed": Kind(
        400,
        "The body cannot be read",
        "Broken framing, broken gzip or broken JSON. Sending the same bytes again will not help.",
    ),
    "token-missing": Kind(
        401,
        "A token is needed",
        "Send `Authorization: Bearer <token>`. `snc token create` makes one; the page asks for it.",
    ),
    "token-invalid": Kind(
        401, "The token does not count", "It is not one of ours, has expired, or was revoked."
    ),
    "scope-missing": Kind(
        403,
        "The token does not allow this",
        "`scope` names what is missing: ingest, read or admin, which includes the others.",
    ),
    "project-refused": Kind(
        403,
        "The token is for another project",
        "Runs of other projects are 404; what names another project, or speaks of all, is this.",
    ),
    "quota-exceeded": Kind(
        403,
        "The token has created as many runs as it may",
        "Delete runs, or let an operator raise SNC_TOKEN_RUNS.",
    ),
    "host-refused": Kind(
        403,
        "This host name is not served",
        "While no token is asked for, the service answers only to loopback names and to those in "
        "SNC_ALLOWED_HOSTS, so that no foreign page can reach it through a browser.",
    ),
    "cross-origin": Kind(
        403,
        "Changes from another origin are refused",
        "A page of another origin tried to change something through a browser.",
    ),
    "not-found": Kind(404, "There is nothing here", "No such URL: see /docs."),
    "run-unknown": Kind(
        404, "The run does not exist", "Create it with POST /api/v1/runs, or it was deleted."
    ),
    "layer-unknown": Kind(
        404, "The run has no such layer", "GET /api/v1/runs/{run}/layers lists them."
    ),
    "incident-unknown": Kind(
        404,
        "There is no such incident",
        "GET /api/v1/incidents lists them; runs take theirs along.",
    ),
    "silence-unknown": Kind(
        404, "There is no such silence", "GET /api/v1/silences lists those in force."
    ),
    "token-unknown": Kind(
        404, "There is no such token", "GET /api/v1/tokens lists them, revoked ones too."
    ),
    "method-not-allowed": Kind(
        405, "The method is not allowed here", "The Allow header lists those that are."
    ),
    "history-thinned": Kind(
        410,
        "Exact values of these steps are gone",
        "SNC_THIN_DAYS dropped them: `below` is the first step that still has them. Histories and "
        "heatmaps go on, with min, max and mean of every 32 measured steps.",
    ),
    "body-slow": Kind(
        408, "The body took too long to arrive", "Try again over a better connection."
    ),
    "layer-table-unknown": Kind(
        409,
        "The layer table is not registered",
        "PUT the table to /api/v1/runs/{run}/layer-tables/{hash}, then send the same bytes again.",
    ),
    "sequence-gap": Kind(
        409,
        "A sequence number was left out",
        "Send from `expected` on, or declare the numbers given up as `skipped`.",
    ),
    "sequence-conflict": Kind(
        409,
        "This sequence number was stored with other content",
        "Two processes use one writer, or a batch was altered: drop it.",
    ),
    "token-exists": Kind(
        409,
        "The name is, or was, that of another token",
        "Names are not used twice, so that the audit log speaks of one token: take another.",
    ),
    "run-closed": Kind(409, "The run has ended", "No job would get the command."),
    "commands-waiting": Kind(
        409,
        "The job has not taken earlier commands yet",
        "They ride in its next acknowledgement: wait for it, or see whether the run is silent.",
    ),
    "precondition-failed": Kind(
        412,
        "What was read has changed since",
        "If-Match names a version that is no longer in force: read it again, then decide.",
    ),
    "body-too-large": Kind(
        413,
        "The body is too large",
        "Declared, streamed and inflated bytes are limited: GET /api/v1 says to how many.",
    ),
    "media-type": Kind(
        415, "The content type or encoding is not understood", "GET /api/v1 lists what is."
    ),
    "run-full": Kind(
        422,
        "The run has too much of a kind",
        "Names, versions and notes of a run are bounded: each makes something dearer. `bound` is "
        "the setting of the service, `limit` its value.",
    ),
    "service-full": Kind(
        422,
        "The service has too much of a kind",
        "What everybody is compared with is bounded. `bound` is the setting of the service, "
        "`limit` its value.",
    ),
    "invalid": Kind(
        422, "A value is not valid", "`field` names it, `detail` says what was expected."
    ),
    "rate-limited": Kind(
        429,
        "The token is over its share",
        "Of requests per second or of bytes at once. Wait as long as Retry-After says.",
    ),
    "store-damaged": Kind(
        500,
        "Stored values are damaged",
        "They are not what was stored: a disk or a copy has changed them. `run`, `layers` (the "
        "first and the last) and `steps` say where; everything else can be read. An operator runs "
        "`snc db verify`, then `snc db repair` or restores a backup.",
    ),
    "internal": Kind(500, "The service has a defect", "The service's log says more."),
    "format-unavailable": Kind(
        501,
        "This service cannot write that format",
        "Ask for csv, or let an operator install 'spectral-norm-constraint[parquet]'.",
    ),
    "overloaded": Kind(
        503, "The service is full", "Wait as long as Retry-After says, then try again."
    ),
    "draining": Kind(
        503, "The service is stopping", "Wait as long as Retry-After says, then try again."
    ),
    "store-unavailable": Kind(
        503,
        "The store cannot be reached or written",
        "Locked, read-only or gone. Nothing was stored; try again after Retry-After.",
    ),
    "storage-full": Kind(
        503,
        "The disk of the store is full",
        "Nothing was stored, reading goes on. Make room; clients come back after Retry-After.",
    ),
}


class Problem(HTTPException):
    """An error answer: a kind out of `KINDS` and one sentence.

    ``field`` names the wrong part of the request; ``members`` are added to the answer.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        status = KINDS[kind].status
        wait = {"Retry-After": RETRY_AFTER_SECONDS} if status in (429, 503) else {}
        super().__init__(status, detail, {**wait, **(headers or {})})
        self.kind = kind
        self.field = field
        self.members = members

    def response(self) -> Response:
        """Return the HTTP response."""
        body: dict[str, Any] = {
            "type": f"{TYPE_PREFIX}{self.kind}",
            "title": KINDS[self.kind].title,
            "status": self.status_code,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        return Response(
            json.dumps(body | self.members),
            self.status_code,
            self.headers,
            PROBLEM_MEDIA_TYPE,
        )


def from_wire(error: WireError) -> Problem:
    """Return the problem of a `WireError`: broken framing is 400, all else 422."""
    kind = "body-malformed" if error.field in _FRAMING else "invalid"
    return Problem(kind, str(error), field=error.field)


_FRAMING = frozenset(("body", "header", "layer table"))


def from_store(error: StoreError) -> Problem:
    """Return the problem of a `StoreError`."""
    if isinstance(error, SequenceGap):
        return Problem("sequence-gap", str(error), field="seq", expected=error.expected)
    if isinstance(error, HistoryThinned):
        return Problem("history-thinned", str(error), field="from_step", below=error.below)
    if isinstance(error, BoundReached):
        kind = "service-full" if isinstance(error, ServiceFull) else "run-full"
        return Problem(kind, str(error), field=error.field, bound=error.bound, limit=error.limit)
    if isinstance(error, StoreDamaged):
        return Problem(
            "store-damaged",
            str(error),
            run=error.run,
            metrics=list(error.metrics),
            layers=list(error.layers),
            steps=list(error.steps),
        )
    if isinstance(error, VersionConflict):
        return Problem("precondition-failed", str(error), current=error.current)
    for of_store, kind in _STORE_KINDS:
        if isinstance(error, of_store):
            detail = str(error) or KINDS[kind].meaning
            return Problem(kind, detail, field="layers" if kind == "invalid" else None)
    log.error("the store failed: %s", error)
    return Problem("internal", KINDS["internal"].meaning)


_STORE_KINDS: tuple[tuple[type[StoreError], str], ...] = (
    (RunUnknown, "run-unknown"),
    (LayerUnknown, "layer-unknown"),
    (LayerTableUnknown, "layer-table-unknown"),
    (LayerTableMismatch, "invalid"),
    (SequenceConflict, "sequence-conflict"),
    (TokenUnknown, "token-unknown"),
    (TokenExists, "token-exists"),
    (QuotaExceeded, "quota-exceeded"),
    (RunClosed, "run-closed"),
    (CommandsWaiting, "commands-waiting"),
    (StoreFull, "storage-full"),
    (StoreUnavailable, "store-unavailable"),
)


def from_validation(errors: list[Any]) -> Problem:
    """Return the problem of the first pydantic error, as one sentence."""
    error = errors[0]
    where = [str(part) for part in error["loc"] if part not in ("query", "path", "header", "body")]
    field = ".".join(where)[:200] or "body"
    if error["type"] == "json_invalid":
        return Problem("body-malformed", f"body must be JSON: {error['msg']}", field="body")
    if error["type"] == "extra_forbidden":
        return Problem("invalid", f"{field} is not known here: leave it out", field=field)
    if error["type"] == "missing":
        return Problem("invalid", f"{field} must be given", field=field)
    if error["type"] == "value_error":  # one of our validators
        ours = error["ctx"]["error"]
        expected = ours.message if isinstance(ours, WireError) else str(ours)
        return Problem("invalid", f"{field} {expected}", field=field)
    expected = _PYDANTIC.sub("must ", str(error["msg"]))
    return Problem("invalid", f"{field} {expected}, got {shown(error.get('input'))}", field=field)


_PYDANTIC = re.compile(r"^\w+ should ")


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as problem+json."""

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        if isinstance(error, Problem):
            return error.response()
        kind = _BY_STATUS.get(error.status_code, "not-found")
        detail = error.detail
        if detail == "Not Found":
            detail = f"there is nothing at {request.url.path[:200]!r}: see /docs"
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = _allowed(app.routes, request.url.path)
            allowed |= {"HEAD"} if "GET" in allowed else set()  # see api/conventions/head.py
            headers["Allow"] = ", ".join(sorted(allowed))
            detail = f"{request.method[:20]} is not allowed here: see the Allow header"
        return Problem(kind, detail, headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return from_validation(list(error.errors())).response()

    @app.exception_handler(StoreError)
    async def store(request: Request, error: StoreError) -> Response:
        return from_store(error).response()

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:
        return Problem("internal", KINDS["internal"].meaning).response()


def _allowed(routes: Iterable[Any], path: str) -> set[str]:
    """Return the methods of all routes at ``path``; the framework names only those of the first."""
    methods: set[str] = set()
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            methods |= _allowed(inner.routes, path)
        elif route.path_regex.match(path):
            methods |= route.methods
    return methods


_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 400: "invalid"}
