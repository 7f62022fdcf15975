"""Bodies that are bombs or no bodies at all: refused with 4xx, bounded in memory, survived."""

import gzip
import json
import random
import threading
import zlib

import httpx
import pytest
from hostile import BATCHES, BINARY, GOOD, JSON, MIB, running_victim, surviving

from snc_service.wire import MEDIA_TYPE


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    with running_victim(tmp_path_factory.mktemp("hostile")) as victim:
        yield victim


@pytest.fixture(autouse=True)
def survived(victim):
    with surviving(victim):
        yield


def test_bodies_that_inflate_are_cut_off(victim):
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([packer.compress(bytes(MIB)) for _ in range(512)]) + packer.flush()
    assert len(bomb) < MIB
    told = []

    def post():
        headers = {"Content-Encoding": "gzip", **BINARY}
        told.append(httpx.post(victim.url + BATCHES, content=bomb, headers=headers, timeout=60))

    threads = [threading.Thread(target=post) for _ in range(7)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.status_code for each in told] == [413] * 7


def test_a_bomb_in_a_bomb_is_no_body(victim):
    content = gzip.compress(gzip.compress(bytes(4 * MIB)))
    told = victim.http.post(BATCHES, content=content, headers={"Content-Encoding": "gzip", **JSON})
    assert told.status_code == 400


@pytest.mark.parametrize("kind", [JSON, BINARY])
@pytest.mark.parametrize("encoding", [{}, {"Content-Encoding": "gzip"}])
def test_a_body_without_end_is_cut_off_at_the_limit(victim, kind, encoding):
    def endless():
        for _ in range(64):
            yield bytes(MIB)

    try:
        told = victim.http.post(BATCHES, content=endless(), headers={**kind, **encoding})
        assert told.status_code in (400, 413)
    except httpx.WriteError:  # it hung up while we were still sending
        pass


@pytest.mark.parametrize("length", [9 * MIB, 10**12, 10**17])
def test_a_body_that_is_announced_too_large_is_refused_unread(victim, length):
    head = f"POST {BATCHES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MEDIA_TYPE}\r\n"
    with victim.connect() as peer:
        peer.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert peer.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"writer":"w","seq":0,"steps":' + b"[" * 500_000,
        b'{"writer":"w","seq":' + b"9" * 100_000 + b',"steps":[0],"scalars":{"a":[1]}}',
        b'{"writer":"w","seq":0,"steps":[0],"scalars":{"a":[1e' + b"9" * 100_000 + b"]}}",
        b'{"writer":"w","seq":0,"steps":[0],"scalars":{"a":["' + b"x" * 1_000_000 + b'"]}}',
        json.dumps({"writer": "w", "seq": 0, "steps": list(range(1025)),
                    "scalars": {"a": [1] * 1025}}).encode(),
        json.dumps({"writer": "w", "seq": 0, "steps": [0],
                    "scalars": {f"a{i}": [1] for i in range(20_000)}}).encode(),
        json.dumps({"writer": "w", "seq": 0, "steps": [0], "layers": ["a"] * 200_000,
                    "metrics": {"sigma": [[1] * 200_000]}}).encode(),
    ],
    ids=range(9),
)  # fmt: skip
def test_json_that_costs_more_than_it_says_is_refused(victim, body):
    told = victim.http.post(BATCHES, content=body, headers=JSON)
    assert told.status_code in (400, 413, 422), told.text[:200]
    told = victim.http.post("/api/v1/runs", content=body, headers=JSON)
    assert told.status_code in (400, 413, 422)


def test_a_config_of_any_depth_is_refused_or_kept(victim):
    for depth in (50, 200, 900, 5_000):
        content = b'{"run":"deep","config":{"a":' + b"[" * depth + b"]" * depth + b"}}"
        told = victim.http.post("/api/v1/runs", content=content, headers=JSON)
        assert told.status_code in (200, 201, 400, 422), told.text[:200]
        if told.is_success:
            assert victim.http.get("/api/v1/runs/deep").status_code == 200


def test_layer_tables_without_measure_are_refused(victim):
    for layers in ([{"name": f"l{i}"} for i in range(65_537)],
                   [{"name": "x" * 257}], [{"name": "a"}] * 2,
                   [{"name": "a", "shape": [2**70]}],
                   [{"name": "a", "shape": [1] * 100}]):  # fmt: skip
        content = json.dumps({"layers": layers}).encode()
        path = f"/api/v1/runs/r/layer-tables/{32 * '0'}"
        assert victim.http.put(path, content=content, headers=JSON).status_code in (413, 422)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"\xff\xfe{\x00}\x00", JSON),
        ('{"run":"u16"}'.encode("utf-16"), JSON),
        (b'\xef\xbb\xbf{"run":"bom"}', JSON),
        (b'{"run":"a\xff"}', JSON),
        (b'{"name":"\xed\xa0\x80"}', JSON),
        (b'{"name":"\xc0\xaf"}', JSON),
        (b'{"run":"a"}', {"Content-Type": "application/json", "Content-Encoding": "br"}),
        (b'{"run":"a"}', {"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"}),
        (b'{"run":"a"}', {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (gzip.compress(b'{"run":"a"}')[:-3], {**JSON, "Content-Encoding": "gzip"}),
        (gzip.compress(b'{"run":') + gzip.compress(b'"a"}'), {**JSON, "Content-Encoding": "gzip"}),
        (gzip.compress(b"{}") + b"x", {**JSON, "Content-Encoding": "gzip"}),
        (zlib.compress(b"{}"), {**JSON, "Content-Encoding": "gzip"}),
        (b"<run/>", {"Content-Type": "application/xml"}),
        (b"run=a", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"--x\r\n\r\n{}\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
        (b"{}", {"Content-Type": b"application/json\x80"}),
        (b"", JSON),
        (b"null", JSON),
    ],
    ids=range(19),
)
def test_a_body_in_a_wrong_encoding_is_refused(victim, content, headers):
    told = victim.http.post("/api/v1/runs", content=content, headers=headers)
    assert told.status_code in (400, 415, 422), told.text
    assert told.json()["detail"]


def test_a_frame_with_any_bytes_changed_is_refused_or_a_frame(victim):
    rng = random.Random(7)
    for _ in range(400):
        frame = bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        cut = rng.choice((0, 0, 1, 4, 100))
        told = victim.http.post(BATCHES, content=bytes(frame[: len(frame) - cut]), headers=BINARY)
        assert told.status_code in (200, 400, 409, 422), told.text
