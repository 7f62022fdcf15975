"""An HTTP client of a running service; every failure becomes one sentence."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx

from snc_service.cli.failure import Failure, RefusedByService

PAGE = 500
# Whatever HTTP_PROXY says: a proxy reaches its own machine under these names, not this one.
DIRECT: Final = {"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None}
Json = dict[str, Any]


class ServiceClient:
    """The REST interface below ``url``. Use it as a context manager."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.Client(
                base_url=f"{self.url}/api/v1", headers=headers, timeout=30, mounts=DIRECT
            )
            is_http = self._http.base_url.scheme in ("http", "https") and self._http.base_url.host
        except (httpx.InvalidURL, ValueError, UnicodeError):
            is_http = False
        if not is_http:
            raise Failure(f"the URL must be http://host:port or https://..., got {self.url[:80]!r}")

    @classmethod
    def of(cls, arguments: Namespace) -> ServiceClient:
        """Open the service at ``--url`` with ``--token``."""
        return cls(arguments.url, arguments.token)

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, *path: str, **query: object) -> Json:
        """Return the answer to a GET. Raises `Failure`."""
        return self._answer("GET", path, query)

    def put(self, *path: str, body: object, headers: Mapping[str, str] | None = None) -> Json:
        """Return the answer to a PUT. Raises `Failure`."""
        return self._answer("PUT", path, {}, json=body, headers=headers)

    def post(self, *path: str, body: object) -> Json:
        """Return the answer to a POST. Raises `Failure`."""
        return self._answer("POST", path, {}, json=body)

    def send(self, method: str, *path: str, content: bytes, media_type: str) -> Json:
        """Return the answer to a body of bytes. Raises `Failure`."""
        headers = {"Content-Type": media_type}
        return self._answer(method, path, {}, content=content, headers=headers)

    def patch(self, *path: str, body: object) -> Json:
        """Return the answer to a PATCH. Raises `Failure`."""
        return self._answer("PATCH", path, {}, json=body)

    def delete(self, *path: str) -> None:
        """Delete. Raises `Failure`."""
        self._answer("DELETE", path, {})

    def stream(self, *path: str, **query: object) -> Iterator[bytes]:
        """Yield the chunks of an answer to a GET. Raises `Failure`, also if it is incomplete."""
        url, params = _asked(path, query)
        try:
            with self._http.stream("GET", url, params=params, timeout=120) as response:
                if not response.is_success:
                    response.read()
                    raise self._refused(response)
                yield from response.iter_bytes()
        except httpx.RemoteProtocolError:
            raise Failure(
                f"the answer of {self.url} broke off: the run was deleted, the service stopped, or "
                "its token does not count any more"
            ) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def items(self, *path: str, limit: int, **query: object) -> Iterator[Json]:
        """Yield the items of a list, page after page, at most ``limit``."""
        cursor = None
        while limit > 0:
            page = self.get(*path, limit=min(limit, PAGE), cursor=cursor, **query)
            yield from page["items"][:limit]
            limit -= len(page["items"])
            cursor = page.get("next")
            if cursor is None or not page["items"]:
                return

    def _answer(self, method: str, path: tuple[str, ...], query: Json, **more: Any) -> Json:
        url, params = _asked(path, query)
        try:
            response = self._http.request(method, url, params=params, **more)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code == 204:
            return {}
        if response.is_success:
            return self._json(response)
        raise self._refused(response)

    def _unreachable(self, error: httpx.HTTPError) -> Failure:
        if isinstance(error, httpx.TimeoutException):
            return Failure(f"{self.url} did not answer in time")
        return Failure(
            f"no service answers at {self.url} ({error}): start one with `snc serve`, "
            "or name it with --url or SNC_URL"
        )

    def _json(self, response: httpx.Response) -> Json:
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Failure(f"{self.url} is not this service: its answer is no JSON object")
        return value

    def _refused(self, response: httpx.Response) -> RefusedByService:
        """Return the error of a problem+json answer, or of any other answer by its bare status."""
        try:
            problem = response.json()
            text = problem.get("detail") or problem.get("title")
        except (ValueError, AttributeError):
            text = None
        reason = str(text) if text else response.reason_phrase or "no reason given"
        hint = "; set --token or SNC_TOKEN" if response.status_code in (401, 403) else ""
        wait = response.headers.get("Retry-After", "")
        return RefusedByService(
            f"{reason} ({response.status_code}){hint}",
            response.status_code,
            int(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None,
        )


def _asked(path: tuple[str, ...], query: Json) -> tuple[str, Json]:
    """Return a URL in which every name is one quoted segment, and its parameters."""
    url = "/".join(quote(part, safe="") for part in path)
    return url, {name: value for name, value in query.items() if value is not None}
