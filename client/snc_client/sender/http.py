"""HttpConnection: the only HTTP code of the client; every request returns an `Answer`.

httpx is imported on first use, in the sender thread: its 135 ms do not delay the job's start.
"""

from __future__ import annotations

import email.utils
import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from snc_client.sender.allowance import Allowance

if TYPE_CHECKING:
    import httpx

THREAD_NAME = "snc-sender"
CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0
MAX_ANSWER_BYTES = 2 * 2**20  # a policy of 1,024 entries with the longest patterns fits
SMALL_ANSWER_BYTES = 64 * 2**10  # cheap to read, whatever is in it; a usual answer has 200
MAX_RETRY_AFTER_SECONDS = 300.0

_importing = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """The answer to a request: ``status`` 0 if it is unusable, ``body`` empty if no JSON object.

    ``reason`` is one phrase for the log.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    reason: str = ""


class HttpConnection:
    """One kept-alive connection to one service; not for several threads at once."""

    def __init__(
        self, url: str, token: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        httpx = _import_httpx()
        logging.getLogger("httpx").addFilter(_not_ours)
        self._errors = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
        self._timeout = httpx.Timeout
        self._stream: object = None
        self._allowance = Allowance()
        self._base = url.rstrip("/") + "/api/v1"
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            # A redirect would send the token to any host that the peer names.
            follow_redirects=False,
            # Loading the certificates costs 30 ms, and a proxy cannot reach this machine.
            verify=url.startswith("https:"),
            trust_env=not _is_local(url),
        )

    def request(
        self,
        method: str,
        path: str,
        content: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = READ_SECONDS,
    ) -> Answer:
        """Send one request and read its answer; a failure of the network gives status 0.

        ``seconds`` bounds each wait for the peer, and with `CONNECT_SECONDS` the whole exchange.
        """
        timeout = self._timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        sent = {"Content-Type": "application/json", **(headers or {})}
        # The timeout bounds each wait: a peer that drips header lines would never reach it.
        limit = threading.Timer(seconds + CONNECT_SECONDS, self._cut)
        limit.daemon = True
        limit.start()
        try:
            with self._client.stream(
                method,
                self._base + path,
                content=content,
                headers=sent,
                timeout=timeout,
                extensions={"trace": self._trace},
            ) as response:
                return _answer(response, time.monotonic() + seconds, self._allowance)
        except self._errors as error:
            return Answer(0, reason=f"{type(error).__name__}: {error}")
        finally:
            limit.cancel()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the stream of the connection, which httpx shows in its trace only."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info.get("return_value")

    def _cut(self) -> None:
        """Shut the connection down: the thread that reads from it gets an error."""
        connected = getattr(self._stream, "get_extra_info", lambda _: None)("socket")
        try:
            if connected is not None:
                connected.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def hold_forks_while_importing() -> None:
    """Make forks wait until httpx is imported: a child forked meanwhile could not import it.

    A job builds its callback, then its loader, whose workers fork within the same 135 ms.
    """
    _guard_forks()


@functools.cache
def _guard_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_importing.acquire,
            after_in_parent=_importing.release,
            after_in_child=_importing.release,
        )


def _import_httpx() -> Any:
    with _importing:
        import httpx
    return httpx


def _not_ours(record: logging.LogRecord) -> bool:
    """Keep httpx's line per request out of the job's log; the job's own requests stay in it."""
    return record.threadName != THREAD_NAME


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _answer(response: httpx.Response, deadline: float, allowance: Allowance) -> Answer:
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            return Answer(0, reason=f"an answer too long or too slow after {len(data)} bytes")
    # The parser holds the interpreter: 2 MiB of brackets stop a training for 0.2 s.
    if len(data) > SMALL_ANSWER_BYTES and not allowance.due:
        return Answer(0, reason=f"an answer of {len(data)} bytes too soon after a costly one")
    with allowance.spending():
        body = _json_object(bytes(data))
    return Answer(
        response.status_code,
        body,
        _retry_after(response.headers.get("retry-after")),
        f"status {response.status_code} {str(body.get('detail', ''))[:200]!r}",
    )


def _json_object(data: bytes) -> dict[str, Any]:
    """Return the object, or an empty one for anything else, bare NaN included."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse_constant(text: str) -> object:
    raise ValueError(f"bare {text}")


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date, bounded; else None."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if seconds == seconds else None
