"""`Api` and a peer that is busy, broken, slow or no snc service at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from snc_client import Api, ApiError
from snc_client.api import connection

RUN = b'{"run": "r", "tags": []}'


@contextmanager
def peer(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve these answers in turn, the last one for ever; yield the URL and the asked paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", slept.append)
    return slept


def test_a_busy_service_is_asked_again_when_it_says(waits):
    busy = (503, {"Retry-After": "2"}, b'{"detail": "busy"}')
    with peer(busy, busy, (200, {}, RUN)) as (url, asked), Api(url) as api:
        assert api.run("r").id == "r"
    assert (len(asked), waits) == (3, [2.0, 2.0])


def test_it_gives_up_after_its_retries_with_the_sentence_of_the_service(waits):
    answer = (429, {"Retry-After": "999999999999"}, b'{"detail": "one at a time"}')
    with peer(answer) as (url, asked), Api(url, retries=2) as api:
        with pytest.raises(ApiError, match=r"one at a time \(429\)") as refused:
            api.run("r")
    assert refused.value.status == 429
    assert (len(asked), waits) == (3, [connection.MAX_WAIT_SECONDS] * 2)


def test_waits_without_a_hint_grow_and_stay_bounded(waits):
    with peer((502, {"Retry-After": "tomorrow"}, b"")) as (url, _), Api(url, retries=12) as api:
        with pytest.raises(ApiError, match="502"):
            api.run("r")
    longest = [min(0.25 * 2**i, connection.MAX_WAIT_SECONDS) for i in range(12)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))


def test_an_answer_that_breaks_off_is_requested_again(waits):
    torn = (200, {"Content-Length": "999", "Connection": "close"}, RUN)
    with peer(torn, (200, {}, RUN)) as (url, asked), Api(url) as api:
        assert api.run("r").id == "r"
        assert len(asked) == 2
    with peer(torn) as (url, _), Api(url, retries=1) as api:
        with pytest.raises(ApiError, match="broke off") as failed:
            api.run("r")
    assert failed.value.status is None


def test_an_export_that_breaks_off_leaves_no_file(tmp_path):
    torn = (200, {"Content-Length": "999", "Connection": "close"}, b"run,attempt\n")
    with peer((200, {}, RUN), torn) as (url, asked), Api(url) as api:
        run = api.run("r")
        with pytest.raises(ApiError, match="broke off"):
            run.export(tmp_path / "run.csv")
    assert len(asked) == 2  # what was written already is not asked for again
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_one_sentence(waits):
    with peer((200, {}, RUN)) as (url, _):
        pass
    with Api(url, retries=1) as api, pytest.raises(ApiError, match="nothing answers at"):
        api.run("r")
    assert len(waits) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_peer_that_is_no_service_is_named(body):
    with peer((200, {}, body)) as (url, _), Api(url) as api:
        with pytest.raises(ApiError, match="is not an snc service"):
            api.run("r")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"run": "r", "bucket_steps": 1, "steps": [1, 2], "mean": [1], "min": [1], "max": [1],'
        b' "nonfinite": [0]}',
        b'{"run": "r", "bucket_steps": 1, "steps": ["x"], "mean": [], "min": [], "max": [],'
        b' "nonfinite": []}',
        b'{"run": "r", "bucket_steps": 1, "steps": [1e400], "mean": [1], "min": [1], "max": [1],'
        b' "nonfinite": [0]}',
    ],
)
def test_a_malformed_history_is_an_error_of_ours(body):
    with peer((200, {}, RUN), (200, {}, body)) as (url, _), Api(url) as api:
        with pytest.raises(ApiError, match="the answer is no history"):
            api.run("r").history("fc1.weight")


def test_a_redirect_is_not_followed():
    with peer((200, {}, RUN)) as (other, stolen):
        with peer((302, {"Location": f"{other}/"}, b"")) as (url, _), Api(url, token="t") as api:
            with pytest.raises(ApiError, match="302"):
                api.run("r")
    assert stolen == []


def test_an_endless_answer_is_cut(monkeypatch):
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1_000)
    with peer((200, {}, b" " * 2_000)) as (url, _), Api(url) as api:
        with pytest.raises(ApiError, match="at most 1000 bytes"):
            api.run("r")


def test_the_token_is_sent_and_asked_for(monkeypatch):
    monkeypatch.setenv("SNC_TOKEN", "from-environment")
    with peer((401, {}, b'{"title": "Unauthorized"}')) as (url, _), Api(url) as api:
        assert api._connection._http.headers["Authorization"] == "Bearer from-environment"
        with pytest.raises(ApiError, match=r"Unauthorized \(401\); set token= or SNC_TOKEN"):
            api.run("r")


def test_pages_are_requested_while_they_are_iterated():
    page = b'{"items": [{"run": "r", "tags": []}], "next": "n"}'
    last = b'{"items": [{"run": "s", "tags": []}], "next": null}'
    with peer((200, {}, page), (200, {}, last)) as (url, asked), Api(url) as api:
        runs = api.runs()
        assert asked == []
        assert next(runs).id == "r"
        assert len(asked) == 1
        assert [run.id for run in runs] == ["s"]
    assert "cursor=n" in asked[1]
