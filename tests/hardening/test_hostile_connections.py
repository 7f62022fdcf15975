"""Connections that are endless, senseless, slow or gone: cut off, bounded in memory, survived."""

import time

import pytest
from hostile import BATCHES, GOOD, MIB, running_victim, surviving

from snc_service.wire import MEDIA_TYPE


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    with running_victim(tmp_path_factory.mktemp("hostile")) as victim:
        yield victim


@pytest.fixture(autouse=True)
def survived(victim):
    with surviving(victim):
        yield


@pytest.mark.parametrize(
    "part",
    [
        b"GET /" + b"a" * 20 * MIB,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20 * MIB,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 2_000_000,
        b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n0\r\nX: " + b"a" * 20 * MIB,
        b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n0\r\n" + b"X: a\r\n" * 2_000_000,
        b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n5;x=" + b"a" * 20 * MIB,
    ],
    ids=["target", "header", "headers", "trailer", "trailers", "extension"],
)
def test_a_head_without_end_is_cut_off(victim, part):
    with victim.connect() as peer:
        try:
            peer.sendall(part)
        except OSError:
            return  # it hung up: what it said before is lost with what we were still sending
        try:
            assert peer.recv(64).split(b" ")[1] in (b"400", b"431")
        except OSError:
            pass


@pytest.mark.parametrize("length", [60_000, 65_500, 65_536, 70_000, 200_000])
def test_a_url_is_answered_or_too_long_never_misunderstood(victim, length):
    head = b"GET /api/v1/runs?" + b"a" * length + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert victim.raw(head) in ((422,) if length < 65_000 else (422, 431))
    assert length < 65_536 or victim.raw(head) == 431


NO_HTTP = [
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n X: folded\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"CONNECT evil:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0x10\r\n\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nab",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n0\r\n\r\nGET / HTTP/1.1",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\nffffffffffffffffff\r\n",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\n-5\r\nhello",
    b"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
]


@pytest.mark.parametrize("data", NO_HTTP, ids=range(len(NO_HTTP)))
def test_what_is_no_sound_http_is_refused_or_taken_for_what_it_is(victim, data):
    status = victim.raw(data)
    assert status == 0 or 200 <= status < 500
    if b"websocket" in data:
        assert status != 101


def test_a_head_that_drips_and_a_mute_socket_are_hung_up_on(victim):
    peers = [victim.connect() for _ in range(20)]
    for peer in peers[:10]:
        peer.sendall(b"GET / HTTP/1.1\r\nX: ")
    deadline = time.monotonic() + 25
    said = []
    for place, peer in enumerate(peers):
        peer.settimeout(0.5)
        while True:
            assert time.monotonic() < deadline
            try:
                if place < 10:
                    peer.sendall(b"a")
                said.append(peer.recv(64))
                break
            except TimeoutError:
                continue
            except OSError:
                said.append(b"")
                break
        peer.close()
    assert all(each == b"" or each.startswith(b"HTTP/1.1 408 ") for each in said)
    assert all(each == b"" for each in said[10:])


def test_bodies_that_drip_end_at_the_deadline_and_hold_up_nobody(victim):
    head = (f"POST {BATCHES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MEDIA_TYPE}\r\n"
            "Content-Length: 1000\r\n\r\nSNC1")  # fmt: skip
    peers = [victim.connect() for _ in range(50)]
    for peer in peers:
        peer.sendall(head.encode())
    assert victim.http.get("/api/v1/runs").status_code == 200
    for peer in peers:
        assert peer.recv(64).startswith(b"HTTP/1.1 408 ")
        peer.close()


def test_a_body_that_goes_on_after_the_answer_is_hung_up_on(victim):
    with victim.connect() as peer:
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n")
        assert peer.recv(64).startswith(b"HTTP/1.1 404 ")
        peer.settimeout(0.5)
        deadline = time.monotonic() + 25
        while True:
            assert time.monotonic() < deadline
            try:
                peer.sendall(b"a")
                if peer.recv(4096) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break


def test_readers_who_never_read_hold_no_memory(victim):
    peers = [victim.connect() for _ in range(30)]
    for peer in peers:
        peer.sendall(b"GET /api/v1/runs/r/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    for seq in range(30):
        body = {"writer": f"s{time.monotonic_ns()}", "seq": 0, "steps": [seq],
                "scalars": {"loss": [1]}}  # fmt: skip
        assert victim.http.post(BATCHES, json=body).status_code == 200
    for peer in peers:
        peer.close()


def test_clients_that_hang_up_anywhere_are_no_defect(victim):
    whole = (f"POST {BATCHES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MEDIA_TYPE}\r\n"
             f"Content-Length: {len(GOOD)}\r\n\r\n").encode() + GOOD  # fmt: skip
    for end in range(0, len(whole), 17):
        with victim.connect() as peer:
            peer.sendall(whole[:end])
