"""What runs before it is known who asks takes a bounded time, whatever the request looks like.

The time is the processor's, of the event loop's thread alone, the best of three: it does not depend
on what else the machine does. What these bounds keep out took 0.1 to 22 seconds.
"""

import asyncio
import time

import pytest
from api_cases import serving_app, settings_in
from connection_cases import Served, Transport

from snc_service.auth import make_token

KIB = 1024
MOST_SECONDS = 0.01  # for 60 KiB: 0.17 ms for each; they take 0.1 to 4 ms
SECRET_FORM = "snc_" + 12 * "0" + "_" + 48 * "0"
ANSWERS = {200, 400, 401, 403, 404, 413, 415, 422, 431}


async def _ask(app, data):
    """Feed one chunk to a new connection; return the status and the seconds of this thread."""
    served, transport = Served(app), Transport()
    begun = time.thread_time()
    connection = served.connect(transport)
    connection.data_received(data)
    while served.state.tasks:
        await asyncio.wait(served.state.tasks)
    took = time.thread_time() - begun
    connection.connection_lost(None)
    return int(transport.written.split(b" ", 2)[1]), took


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """A service that asks everybody for a token."""
    with serving_app(settings_in(tmp_path_factory.mktemp("heads"))) as api:
        token, _ = make_token(
            "root", ("admin",), project=None, author="operator", now=0.0, expires_at=None
        )
        api.service.store.tokens.add(token)
        api.wait_for(api.service.tokens.refresh, now=True)
        assert api.get("/api/v1/runs").status_code == 401
        yield api


def head(target="/api/v1/runs", *headers, method="GET"):
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:8470", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def filled(text, size=60 * KIB):
    return text * (size // len(text))


BACKSLASHES = '"' + filled("\\\\") + '"'
HEADS = {
    "cookie-quoted": head("/api/v1/runs", "Cookie: snc_session=" + BACKSLASHES),
    "cookie-octal": head("/api/v1/runs", 'Cookie: snc_session="' + filled("\\101") + '"'),
    "cookie-foreign": head("/healthz", "Cookie: x=" + BACKSLASHES),
    "cookie-at-the-login": head("/api/v1/session", "Cookie: snc_session=" + BACKSLASHES),
    "cookie-at-the-page": head("/", "Cookie: snc_session=" + BACKSLASHES),
    "cookie-pairs": head("/healthz", "Cookie: " + filled("a=b; ")),
    "cookie-separators": head("/healthz", "Cookie: " + filled(";")),
    "cookie-spaces": head("/healthz", "Cookie: " + filled("; snc_session=" + " " * 1000)),
    "cookies-of-ours": head("/healthz", "Cookie: " + filled(f"snc_session={SECRET_FORM};")),
    "authorization-spaces": head("/api/v1/runs", "Authorization: Bearer" + filled(" ") + "x"),
    "authorization-long": head("/api/v1/runs", "Authorization: Bearer " + filled("snc_0")),
    "host-colons": head("/api/v1/runs", "X-Forwarded-Host: " + filled(":")),
    "origin": head("/api/v1/runs", "Origin: http://" + filled("[:]@/?#"), method="POST"),
    "origin-latin": head("/api/v1/runs", "Origin: http://" + filled("\xe9\xbd"), method="POST"),
    "request-id": head("/healthz", "X-Request-ID: " + filled("a-")),
    "accept-encoding": head("/api/v1/session", "Accept-Encoding: " + filled("a;q=0,")),
    "if-none-match": head("/", "If-None-Match: " + filled('W/"a",')),
    "content-type": head("/api/v1/session", "Content-Type: " + filled(";a=\"b"), method="POST"),
    "content-length": head("/api/v1/session", "Content-Type: application/json",
                           "Content-Length: 9999", method="POST"),
    "query-parameters": head("/healthz?" + filled("a&")),
    "query-escapes": head("/healthz?a=" + filled("%41")),
    "query-refused": head("/api/v1/runs?" + filled("a&")),
    "path-escapes": head("/ui/" + filled("%41")),
    "path-slashes": head(filled("/")),
    "path-dots": head("/ui/" + filled("../")),
    "path-under-runs": head("/api/v1/runs/" + filled("layers/")),
    "method": head(method=filled("A")),
    "headers": head("/healthz", *(["a:b"] * 12_000)),
    "pipelined": b"GET /healthz HTTP/1.1\r\n\r\n" * 2_400,
    "pipelined-refused": b"GET /api/v1/runs HTTP/1.1\r\n\r\n" * 2_200,
    "chunks": head("/api/v1/runs", "Transfer-Encoding: chunked", method="POST")
              + b"1\r\na\r\n" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_a_head_of_any_shape_costs_little_before_it_is_known_who_sent_it(api, data):
    asked = [api.wait_for(_ask, api.app, data) for _ in range(3)]
    assert {status for status, _ in asked} <= ANSWERS
    assert min(seconds for _, seconds in asked) < MOST_SECONDS
