"""Answers: JSON with null for non-finite numbers, RFC 3339 times, and 304 for unchanged content."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response
from pydantic_core import to_json

from snc_service.store.types import Run
from snc_service.wire.batch import Floats

MIN_GZIP_BYTES = 1_024
# Encoded by one call, during which no other thread runs: a millisecond of rows, or of numbers.
ROWS_AT_ONCE, ITEMS_AT_ONCE = 16, 4_096

Doubles: TypeAlias = npt.NDArray[np.float64]


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as UTC with milliseconds."""
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def etag(run: Run, request: Request) -> str:
    """Return a weak ETag that changes with the run and with the request's path and query.

    The time of creation distinguishes a run from a deleted one of the same name.
    """
    question = f"{request.url.path}?{request.url.query} {run.created_at!r}"
    return f'W/"{run.version}-{hashlib.sha256(question.encode()).hexdigest()[:16]}"'


def is_unchanged(request: Request, tag: str) -> bool:
    """Return whether the client already has the content of ``tag``."""
    have = request.headers.get("if-none-match", "")
    return "*" in have or tag in (part.strip() for part in have.split(","))


def unchanged(tag: str) -> Response:
    """Return 304."""
    return Response(status_code=304, headers={"ETag": tag, "Vary": "Accept-Encoding"})


def answer(
    request: Request, content: Any, *, tag: str | None = None, status_code: int = 200
) -> Response:
    """Return ``content`` as JSON, compressed if the client accepts gzip. Not for the event loop.

    Floats that are not finite become null. Without ``tag``, the ETag is a hash of the body, which
    saves the transfer but not the work.
    """
    body = _encoded(content)
    if tag is None and request.method == "GET":
        tag = f'W/"{hashlib.sha256(body).hexdigest()[:24]}"'
        if is_unchanged(request, tag):
            return unchanged(tag)
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "no-cache"}
    if tag is not None:
        headers["ETag"] = tag
    return Response(*_packed(request, body, headers, status_code), "application/json")


def _encoded(content: Any) -> bytes:
    """Return what one call of ``to_json`` does, its long lists in pieces.

    One call for a large heatmap holds up all other threads for 20 ms, the event loop too.
    """
    if isinstance(content, dict):
        fields = (to_json(str(key)) + b":" + _in_pieces(value) for key, value in content.items())
        return b"{" + b",".join(fields) + b"}"
    return _in_pieces(content)


def _in_pieces(value: Any) -> bytes:
    if not isinstance(value, list) or not value:
        return to_json(value, inf_nan_mode="null")
    most = ROWS_AT_ONCE if isinstance(value[0], (list, dict)) else ITEMS_AT_ONCE
    pieces = (value[first : first + most] for first in range(0, len(value), most))
    return b"[" + b",".join(to_json(p, inf_nan_mode="null")[1:-1] for p in pieces) + b"]"


def text_answer(request: Request, body: bytes, content_type: str) -> Response:
    """Return encoded text, compressed if the client accepts gzip."""
    headers = {"Vary": "Accept, Accept-Encoding", "Content-Type": content_type}
    return Response(*_packed(request, body, headers, 200))


def _packed(
    request: Request, body: bytes, headers: Mapping[str, str], status_code: int
) -> tuple[bytes, int, dict[str, str]]:
    if len(body) < MIN_GZIP_BYTES or not reads_gzip(request):
        return body, status_code, dict(headers)
    # Level 1 is 2.6 times as fast as level 6 and gives a tenth more bytes.
    return gzip.compress(body, 1, mtime=0), status_code, {**headers, "Content-Encoding": "gzip"}


def reads_gzip(request: Request) -> bool:
    """Return whether the client accepts gzip."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*") and weight.replace(" ", "") not in ("q=0", "q=0.0"):
            return True
    return False


def shortest(values: Floats) -> list[Any]:
    """Return float32 values as their shortest decimal numbers, nested like ``values``.

    A value sent as 1.1 is returned as 1.1, not as 1.100000023841858. Non-finite values stay.
    """
    wide = values.astype(np.float64)
    result, todo = _with_digits(wide, values, 6)
    for digits in (7, 8, 9):
        todo &= result.astype(np.float32) != values
        if todo.any():
            result[todo] = _with_digits(wide[todo], values[todo], digits)[0]
    return _nested(result)


def seven_digits(values: Floats) -> list[Any]:
    """Return float32 values to 7 digits, for plots, in a quarter of the time of `shortest`."""
    return _nested(_with_digits(values.astype(np.float64), values, 7)[0])


def _nested(values: Doubles) -> list[Any]:
    """Return an array as lists, row by row: other threads run in between."""
    if values.ndim < 2:
        items: list[Any] = values.tolist()
        return items
    return [_nested(row) for row in values]


def _with_digits(
    wide: Doubles, values: Floats, digits: int
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Return ``wide`` rounded to decimal digits, and where that was possible and needed."""
    with np.errstate(all="ignore"):
        magnitude = np.floor(np.log10(np.abs(wide)))
        usual = np.isfinite(magnitude) & (np.abs(magnitude) <= 13)
        decimals = np.where(usual, digits - 1 - magnitude, 0)
        up, down = 10.0 ** np.maximum(decimals, 0), 10.0 ** np.maximum(-decimals, 0)
        result = np.where(usual, np.rint(wide * up / down) * down / up, wide)
    # Beyond these, a power of ten has no exact float64: use the printer of numpy.
    rare = np.isfinite(magnitude) & ~usual
    if rare.any():
        result[rare] = [float(str(value)) for value in values[rare]]
    return result, usual
