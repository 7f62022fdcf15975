"""A service, or who says to be one, that means harm: no training notices, no secret goes."""

from __future__ import annotations

import socket
import threading

import pytest
from ledger import Ledger, Reply, serving
from listeners import certificate, listening
from sending import PER_ROW, put, sender

from snc_client.sender.http import HttpConnection

TOKEN = "snc_0123456789ab_" + 48 * "c"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_the_token_nowhere(ledger, status):
    with serving(Ledger()) as elsewhere:
        to = (("Location", f"{elsewhere.url}/api/v1/runs"),)
        ledger.before = lambda _: Reply(status, b"{}", headers=to)
        out = sender(ledger.url, token=TOKEN)
        put(out, 0)
        ledger.until(lambda: len(ledger.seen) >= 3)
        out.close(timeout=0.05)
        assert elsewhere.seen == []
        assert out.sent_values == 0


def test_a_service_that_is_busy_for_ever_holds_up_neither_put_nor_close(ledger):
    ledger.before = lambda _: Reply(429, b"{}", headers=(("Retry-After", "0"),))
    out = sender(ledger.url, queue_bytes=10 * 4 * PER_ROW)
    put(out, *range(100))
    ledger.until(lambda: len(ledger.seen) >= 5)
    out.close(timeout=0.05)
    assert out.sent_values == 0
    assert out.dropped_values >= 90 * PER_ROW


def test_a_certificate_that_nobody_vouches_for_ends_the_exchange_before_the_request(tmp_path):
    _, context = certificate(tmp_path, "localhost")
    with listening(context=context) as there:
        connection = HttpConnection(f"https://localhost:{there.port}", TOKEN)
        answer = connection.request("POST", "/runs", b"{}")
        connection.close()
    assert answer.status == 0
    assert "certificate" in answer.reason.lower()
    assert there.heard == []


def test_a_name_that_takes_for_ever_to_resolve_holds_up_neither_put_nor_close(monkeypatch):
    asked, go_on = threading.Event(), threading.Event()
    original = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host in ("hang.example", b"hang.example"):
            asked.set()
            go_on.wait(60)
            raise socket.gaierror("no such name")
        return original(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    out = sender("http://hang.example:8470", queue_bytes=10 * 4 * PER_ROW)
    try:
        put(out, 0)
        assert asked.wait(30)
        put(out, *range(1, 100))
        out.close(timeout=0.05)
        assert not go_on.is_set()  # all of this happened while the resolver was asked
        assert out.sent_values == 0
        assert out.dropped_values >= 90 * PER_ROW
    finally:
        go_on.set()
