"""`ApiConnection`: GET requests to a service, repeated while it is unreachable or busy."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx

from snc_client.errors import ApiError

PAGE = 500  # items per request of a list
MAX_ANSWER_BYTES = 256 * 2**20  # a heatmap of 1,000 layers and 1,000 buckets has 12 MB
FIRST_WAIT_SECONDS = 0.25
MAX_WAIT_SECONDS = 30.0
BUSY = (429, 502, 503, 504)

# Whatever HTTP_PROXY says: a proxy reaches its own machine under these names, not this one.
DIRECT: Final = {"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None}

Json = dict[str, Any]
T = TypeVar("T")


class ApiConnection:
    """Requests below ``{url}/api/v1``. Every failure is an `ApiError` with one sentence.

    A request is repeated ``retries`` times if the service does not answer, or answers 429, 502,
    503 or 504. The wait doubles from `FIRST_WAIT_SECONDS`, or follows ``Retry-After``; one wait
    has at most `MAX_WAIT_SECONDS`. ``timeout`` bounds each wait for the peer, in seconds.
    """

    def __init__(self, url: str, token: str | None, *, timeout: float, retries: int) -> None:
        self.url = url.rstrip("/")
        self._retries = retries
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            # A redirect would send the token to any host that the peer names.
            self._http = httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers=headers,
                timeout=timeout,
                follow_redirects=False,
                mounts=DIRECT,
            )
            is_http = self._http.base_url.scheme in ("http", "https") and self._http.base_url.host
        except (httpx.InvalidURL, ValueError, UnicodeError):
            is_http = False
        if not is_http:
            raise ValueError(
                f"url must be http://host:port or https://..., got {self.url[:80]!r} (Api)"
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, *path: str, **query: object) -> Json:
        """Return the JSON object that answers a GET."""

        def whole() -> bytes:
            with closing(self._open(path, query)) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise ApiError(
                            f"the answer of {self.url} must have at most {MAX_ANSWER_BYTES} "
                            "bytes; ask for fewer points or layers"
                        )
            return bytes(data)

        try:
            value = json.loads(self._repeated(whole))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ApiError(f"{self.url} is not an snc service: its answer is no JSON object")
        return value

    def items(self, *path: str, **query: object) -> Iterator[Any]:
        """Yield the items of a list; a page is requested when its first item is needed."""
        cursor = None
        while True:
            page = self.get(*path, limit=PAGE, cursor=cursor, **query)
            items, cursor = page.get("items"), page.get("next")
            if not isinstance(items, list):
                raise ApiError(f"{self.url} is not an snc service: its answer has no items")
            yield from items
            if cursor is None or not items:
                return

    def chunks(self, *path: str, **query: object) -> Iterator[bytes]:
        """Yield the bytes of an answer. Raises `ApiError`, also if the answer breaks off."""
        with closing(self._repeated(lambda: self._open(path, query))) as response:
            try:
                yield from response.iter_bytes()
            except httpx.TransportError as error:
                raise ApiError(f"the answer of {self.url} broke off: {error}") from None

    def _open(self, path: tuple[str, ...], query: Mapping[str, object]) -> httpx.Response:
        """Send a GET; return its answer before the body is read. Raises `_Busy` if it is busy."""
        url = "/".join(quote(part, safe="") for part in path)
        asked: Any = {name: value for name, value in query.items() if value is not None}
        response = self._http.send(self._http.build_request("GET", url, params=asked), stream=True)
        if response.is_success:
            return response
        with closing(response):
            response.read()
        refused = ApiError(_problem(response), status=response.status_code)
        if response.status_code in BUSY:
            raise _Busy(refused, _retry_after(response))
        raise refused

    def _repeated(self, request: Callable[[], T]) -> T:
        """Return the result of a request that is repeated while it fails for a passing reason."""
        for attempt in itertools.count():
            try:
                return request()
            except _Busy as busy:
                failure, wait = busy.refused, busy.retry_after
            except httpx.TransportError as error:
                failure, wait = self._unreachable(error), None
            if attempt >= self._retries:
                raise failure
            time.sleep(_backoff(attempt) if wait is None else wait)
        raise AssertionError("unreachable")

    def _unreachable(self, error: httpx.TransportError) -> ApiError:
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return ApiError(f"the answer of {self.url} broke off: {error}")
        if isinstance(error, httpx.TimeoutException):
            return ApiError(f"{self.url} did not answer in time; a longer timeout= may help")
        return ApiError(
            f"nothing answers at {self.url} ({error}): start a service with `snc serve`, or name "
            "it with url= or SNC_URL"
        )


class _Busy(Exception):
    """The service asks to be asked again; ``retry_after`` is in seconds, None if it did not say."""

    def __init__(self, refused: ApiError, retry_after: float | None) -> None:
        super().__init__(str(refused))
        self.refused, self.retry_after = refused, retry_after


def _problem(response: httpx.Response) -> str:
    """Return the sentence of a problem+json answer, or the bare status."""
    try:
        problem = response.json()
        text = problem.get("detail") or problem.get("title")
    except (ValueError, AttributeError, RecursionError):
        text = None
    reason = str(text)[:500] if text else response.reason_phrase or "no reason given"
    hint = "; set token= or SNC_TOKEN" if response.status_code in (401, 403) else ""
    return f"{reason} ({response.status_code}){hint}"


def _retry_after(response: httpx.Response) -> float | None:
    """Return the whole seconds of Retry-After, bounded; None for a date or no header."""
    text = response.headers.get("retry-after", "")
    return min(float(text[:9]), MAX_WAIT_SECONDS) if text.isascii() and text.isdigit() else None


def _backoff(attempt: int) -> float:
    wait: float = min(FIRST_WAIT_SECONDS * 2**attempt, MAX_WAIT_SECONDS)
    return wait * random.Random().uniform(0.5, 1.0)
