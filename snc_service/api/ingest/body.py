"""Request bodies: limits on the declared, streamed and inflated size, and on the time.

All bodies are read here. The JSON reader of FastAPI accepts bare NaN, has no deadline and does not
support gzip.
"""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final, Generic, TypeVar

from anyio import to_thread
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from snc_service.api.security.rate_limit import Share
from snc_service.api.state import Budget, InService, Service, access_of
from snc_service.problems import Problem, from_validation
from snc_service.wire import JSON_MEDIA_TYPE

PIECE_BYTES = 64 * 1024  # inflated at a time
OFF_LOOP_BYTES = 64 * 1024  # decoding more would block other requests
# What a route that reads a body may be refused with, whatever it does with the body.
BODY_PROBLEMS: Final = ("body-malformed", "body-slow", "body-too-large", "media-type", "overloaded")
_LENGTH = re.compile(r"[0-9]{1,18}")

Model = TypeVar("Model", bound=BaseModel)


def media_type(request: Request, *accepted: str) -> str:
    """Return the body's media type. Raises `Problem` (415) listing the accepted ones."""
    text = request.headers.get("content-type", "")
    found = text.partition(";")[0].strip().lower()
    if found not in accepted:
        raise Problem(
            "media-type",
            f"Content-Type must be {' or '.join(accepted)}, got {text[:80]!r}",
            field="Content-Type",
            headers={"Accept": ", ".join(accepted)},
            accepted=list(accepted),
        )
    return found


def read_body(
    request: Request, service: Service, limit: int
) -> AbstractAsyncContextManager[bytes, None]:
    """Lend the inflated body, at most ``limit`` bytes before and after inflating.

    Until the context ends, its bytes count against the budget of the service and the token's share
    of it. Raises `Problem` 400 (broken gzip), 408, 413, 415, 429, 503.
    """
    return _LentBody(request, service, limit)


class _LentBody(AbstractAsyncContextManager[bytes, None]):
    """The context of `read_body`; a generator costs more, and every batch pays for it."""

    def __init__(self, request: Request, service: Service, limit: int) -> None:
        self._request = request
        self._service = service
        self._limit = limit

    async def __aenter__(self) -> bytes:
        request, service, limit = self._request, self._service, self._limit
        packed = _is_gzip(request)
        loan = self._loan = _Loan(service.budget, service.shares.of(access_of(request)))
        try:
            body = await _received(request, loan, limit, service.limits.body_deadline_seconds)
            if packed:
                # Reserved before inflating: the content may be as large as the limit.
                loan.take(limit)
                body = await to_thread.run_sync(inflate, body, limit, limiter=service.inflating)
        except BaseException:
            loan.give_back()
            raise
        return body

    async def __aexit__(self, *error: object) -> None:
        self._loan.give_back()


class _Loan:
    """Bytes charged to a token's share and to the whole service's budget."""

    def __init__(self, budget: Budget, share: Share | None) -> None:
        self._budget = budget
        self._share = share
        self.taken = 0

    def take(self, num_bytes: int) -> None:
        if self._share is not None:
            self._share.take(num_bytes)
        try:
            self._budget.take(num_bytes)
        except Problem:
            if self._share is not None:
                self._share.give_back(num_bytes)
            raise
        self.taken += num_bytes

    def give_back(self) -> None:
        self._budget.give_back(self.taken)
        if self._share is not None:
            self._share.give_back(self.taken)


async def _received(request: Request, loan: _Loan, limit: int, deadline_seconds: float) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(declared) or int(declared) > limit:
        raise _too_large(limit, "declares more")
    chunks: list[bytes] = []
    try:
        with _deadline(deadline_seconds):
            async for chunk in request.stream():
                loan.take(len(chunk))
                if loan.taken > limit:
                    raise _too_large(limit, "is longer")
                chunks.append(chunk)
    except ClientDisconnect:  # no client reads the answer, but this is no defect of the service
        raise Problem("body-malformed", "the body must not end early", field="body") from None
    except TimeoutError:
        raise Problem(
            "body-slow", f"the body must arrive within {deadline_seconds:g} seconds"
        ) from None
    return b"".join(chunks)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` if the task still waits after ``seconds``.

    It uses one timer, because every request pays for it: library timeouts cost as much as decoding.
    """
    task = asyncio.current_task()
    assert task is not None
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, give_up)
    try:
        yield
    except asyncio.CancelledError:
        if not late:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise TimeoutError from None
    finally:
        timer.cancel()


def inflate(data: bytes, limit: int) -> bytes:
    """Return one gzip member's content; allocate at most ``limit`` bytes for it."""
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    # In small pieces: zlib would hold its whole output twice, and copy its unread input each time.
    content = bytearray()
    try:
        for start in range(0, len(data), PIECE_BYTES):
            rest = data[start : start + PIECE_BYTES]
            while rest and not inflater.eof and len(content) <= limit:
                content += inflater.decompress(rest, PIECE_BYTES)
                rest = inflater.unconsumed_tail
            if (rest and inflater.eof) or inflater.unused_data:
                raise _not_one_member("goes on after its end")
            if len(content) > limit:
                raise _too_large(limit, "inflates to more")
        content += inflater.flush()
    except zlib.error as error:
        raise Problem("body-malformed", f"body must be gzip: {error}", field="body") from None
    if not inflater.eof:
        raise _not_one_member("is cut short")
    if len(content) > limit:
        raise _too_large(limit, "inflates to more")
    return bytes(content)


def _not_one_member(how: str) -> Problem:
    return Problem("body-malformed", f"body must be one gzip member, it {how}", field="body")


class JsonBody(Generic[Model]):
    """A dependency that parses a JSON body as ``model``, strictly; OpenAPI shows the example.

    ``max_bytes`` is a lower limit than that of the service, for unauthenticated clients.
    """

    def __init__(self, model: type[Model], example: Any, *, max_bytes: int | None = None) -> None:
        self.model = model
        self.example = example
        self.max_bytes = max_bytes

    async def __call__(self, request: Request, service: InService) -> Model:
        """Return the body. Raises `Problem` 400, 408, 413, 415, 422, 429, 503."""
        media_type(request, JSON_MEDIA_TYPE)
        limit = min(service.limits.json_bytes, self.max_bytes or service.limits.json_bytes)
        async with read_body(request, service, limit) as body:
            model: Model = await off_loop(len(body), parse_json, self.model, body)
            return model


def parse_json(model: type[Model], body: bytes) -> Model:
    """Return ``body`` as ``model``. Raises `Problem` 400 (no JSON) or 422 naming the field."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise from_validation(list(error.errors(include_url=False))) from None


async def off_loop(num_bytes: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` here if the input is small, else in a thread."""
    if num_bytes > OFF_LOOP_BYTES:
        return await run_in_threadpool(work, *arguments)
    return work(*arguments)


def _is_gzip(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise Problem(
            "media-type",
            f"Content-Encoding must be gzip or identity, got {encoding[:80]!r}",
            field="Content-Encoding",
            headers={"Accept-Encoding": "gzip, identity"},
            accepted=["gzip", "identity"],
        )
    return encoding == "gzip"


def _too_large(limit: int, how: str) -> Problem:
    return Problem(
        "body-too-large", f"the body must be at most {limit} bytes, it {how}", limit=limit
    )
