"""One POST to a receiver: to a checked address, within one deadline, reading only the status.

It uses httpcore, the transport of httpx, directly: httpcore follows no redirect, ignores the proxy
variables of the environment, and accepts a connection made here.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final, Literal

import httpcore
import httpx

from snc_service.alerts.address import AddressRefused, Network, checked

DEADLINE_SECONDS: Final = 10.0  # for connection, TLS, request and status together
# Statuses of a receiver that is up but busy: a later attempt may succeed.
_BUSY: Final = frozenset((408, 425, 429))


class NotDelivered(Exception):
    """A message was not delivered; the text holds no secret: no path, no header, no response body.

    ``outage``: the receiver as a whole fails, not this one message.
    """

    def __init__(
        self,
        detail: str,
        *,
        outcome: Literal["failed", "refused"] = "failed",
        outage: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.outage = outage
        self.retry_after = retry_after


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    allowed: Sequence[Network],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """POST ``body``; a 2xx status is success. Raises `NotDelivered` for everything else."""
    deadline = time.monotonic() + deadline_seconds
    target = httpcore.URL(url)
    place = f"{target.host.decode()}:{target.origin.port}"
    sent = {"User-Agent": "snc", "Connection": "close", **headers}
    pool = httpcore.ConnectionPool(
        ssl_context=trusted(), max_connections=1, network_backend=_Pinned(allowed, deadline)
    )
    try:
        with (
            pool,
            pool.stream(
                "POST",
                target,
                headers=[(name.encode(), value.encode()) for name, value in sent.items()],
                content=body,
            ) as response,
        ):
            _judge(place, response)
    except AddressRefused as error:
        raise NotDelivered(str(error), outcome="refused") from None
    except httpcore.TimeoutException:
        raise NotDelivered(f"{place} did not answer within {deadline_seconds:g} seconds") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError) as error:
        raise NotDelivered(f"{place} cannot be talked to: {_words(error)}") from None


@cache
def trusted() -> ssl.SSLContext:
    """Return a TLS context that trusts the usual roots and those of this machine."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, None if it is missing or malformed."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _judge(place: str, response: httpcore.Response) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise NotDelivered(
            f"{place} answered {status}: redirects are not followed, give the URL it leads to",
            outcome="refused",
            outage=False,
        )
    told = next((v for n, v in response.headers if n.lower() == b"retry-after"), None)
    wait = retry_after(None if told is None else told.decode("latin-1"), time.time())
    busy = status >= 500 or status in _BUSY
    raise NotDelivered(
        f"{place} answered {status}",
        outcome="failed" if busy else "refused",
        outage=busy,
        retry_after=wait,
    )


def _words(error: BaseException) -> str:
    """Return why a connection failed; transport errors wrap those of the system."""
    inner = error.__cause__ or error.__context__ or error
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return " ".join(text.split())[:200] or type(inner).__name__


class _Pinned(httpcore.SyncBackend):
    """A backend that connects only to a checked address."""

    def __init__(self, allowed: Sequence[Network], deadline: float) -> None:
        self._allowed = allowed
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that accepts."""
        failure: Exception | None = None
        for address in checked(host, port, self._allowed):
            try:
                left = _left(self._deadline)
                stream = super().connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Limited(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        """Refuse: no URL leads to a unix socket."""
        raise httpcore.ConnectError("not a network address")


class _Limited(httpcore.NetworkStream):
    """A stream whose every operation ends at one deadline: slow bytes do not extend it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline)
        return _Limited(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline is past")
    return left
