"""Bodies: limits on what is declared, streamed and inflated, on all together, and on time."""

import gzip
import socket
import time
import tracemalloc
import zlib

import anyio
import httpx
import pytest
from api_cases import (
    RUN,
    Api,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)

from snc_service.api.ingest.body import inflate
from snc_service.problems import Problem
from snc_service.wire import MEDIA_TYPE, encode

TABLE = table_of("a")
BINARY = {"Content-Type": MEDIA_TYPE}
LIMIT = 4096


@pytest.fixture
def api(tmp_path):
    limits = {
        "max_body_bytes": LIMIT,
        "max_json_bytes": 2048,
        "max_inflight_bytes": 3 * LIMIT,
        "body_deadline_seconds": 0.3,
    }
    with serving_app(settings_in(tmp_path, **limits)) as opened:
        register(opened, TABLE)
        yield opened


def body_of(num_bytes):
    """Return a valid batch of about so many bytes."""
    steps = tuple(range(num_bytes // 10))
    return encode(batch_of(TABLE, steps=steps, sigma=[[1.0]] * len(steps)))


def nothing_held(api: Api):
    return api.service.budget.held == 0


def test_a_body_that_declares_too_much_is_413_before_it_is_read(api):
    told = api.post(f"{RUN}/batches", content=b"x" * (LIMIT + 1), headers=BINARY)
    problem = assert_problem(told, 413, "body-too-large")
    assert problem["limit"] == LIMIT
    assert problem["detail"].endswith("it declares more")
    assert nothing_held(api)


def test_a_body_that_streams_too_much_is_413(api):
    async def chunks():
        for _ in range(LIMIT):
            yield b"x" * 16

    told = api.post(f"{RUN}/batches", content=chunks(), headers=BINARY)
    assert_problem(told, 413, "body-too-large")
    assert nothing_held(api)


def test_a_body_that_inflates_to_too_much_is_413(api):
    bomb = gzip.compress(bytes(10 * 1024 * 1024))
    headers = BINARY | {"Content-Encoding": "gzip"}
    assert len(bomb) > LIMIT
    bomb = gzip.compress(bytes(1024 * 1024))
    assert len(bomb) < LIMIT
    told = api.post(f"{RUN}/batches", content=bomb, headers=headers)
    assert_problem(told, 413, "body-too-large")
    assert nothing_held(api)


def test_json_has_a_limit_of_its_own(api):
    told = api.post("/api/v1/runs", json={"name": "x" * 3000})
    assert assert_problem(told, 413, "body-too-large")["limit"] == 2048
    told = api.post(f"{RUN}/batches", json={"writer": "x" * 3000})
    assert assert_problem(told, 413, "body-too-large")["limit"] == 2048


@pytest.mark.parametrize("declared", ["-1", "1e3", "", "9" * 40])
def test_a_length_that_is_no_number_is_refused(api, declared):
    told = api.post(f"{RUN}/batches", content=b"", headers=BINARY | {"Content-Length": declared})
    assert_problem(told, 413, "body-too-large")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-1],
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-8] + bytes(8),
        lambda packed: packed + b"x",
        lambda packed: packed + packed,
        lambda packed: b"",
        lambda packed: b"plain text",
        lambda packed: zlib.compress(b"zlib is another format"),
    ],
)
def test_gzip_that_is_corrupt_cut_or_of_several_members_is_400(api, damage):
    content = damage(gzip.compress(body_of(200)))
    headers = BINARY | {"Content-Encoding": "gzip"}
    told = api.post(f"{RUN}/batches", content=content, headers=headers)
    assert_problem(told, 400, "body-malformed", "body")
    assert nothing_held(api)


def test_inflating_stops_at_the_limit():
    assert inflate(gzip.compress(bytes(100)), 100) == bytes(100)
    with pytest.raises(Problem, match="inflates to more"):
        inflate(gzip.compress(bytes(101)), 100)


def test_a_body_that_does_not_arrive_in_time_is_408(api):
    async def dripping():
        yield b"SNC1"
        await anyio.sleep(30)

    told = api.post(f"{RUN}/batches", content=dripping(), headers=BINARY)
    assert_problem(told, 408, "body-slow")
    assert nothing_held(api)


def test_when_too_many_bytes_are_held_others_are_503_and_later_ones_are_read(api):
    async def slow():
        yield b"x" * 3500
        await anyio.sleep(0.2)

    waiting = [
        api.start("POST", f"{RUN}/batches", content=slow(), headers=BINARY) for _ in range(5)
    ]
    told = [each.result(30).status_code for each in waiting]
    assert sorted(set(told)) == [400, 503]
    assert told.count(503) >= 2
    assert nothing_held(api)
    assert api.post(f"{RUN}/batches", content=body_of(100), headers=BINARY).status_code == 200


def test_a_client_that_hangs_up_in_the_middle_leaves_nothing_behind(service_url, tmp_path):
    """Against a real server: half a body, then gone, then a normal request."""
    host, port = service_url.removeprefix("http://").split(":")
    httpx.post(f"{service_url}/api/v1/runs", json={"run": "r"}).raise_for_status()
    with socket.create_connection((host, int(port))) as half:
        half.sendall(
            b"POST /api/v1/runs/r/batches HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        time.sleep(0.1)
    told = httpx.post(
        f"{service_url}/api/v1/runs/r/batches",
        json={"writer": "w", "seq": 0, "steps": [1], "scalars": {"loss": [1]}},
    )
    assert told.status_code == 200
    assert "Traceback" not in (tmp_path / "snc.log").read_text()


@pytest.mark.parametrize("how", ["declared", "streamed"])
def test_a_client_of_a_real_server_reads_the_413(service_url, how):
    httpx.post(f"{service_url}/api/v1/runs", json={"run": "r"}).raise_for_status()
    body = bytes(9 * 1024 * 1024)
    content = (
        body if how == "declared" else (body[i : i + 65536] for i in range(0, len(body), 65536))
    )
    told = httpx.post(f"{service_url}/api/v1/runs/r/batches", content=content, headers=BINARY)
    assert_problem(told, 413, "body-too-large")


def test_a_bomb_costs_no_more_memory_than_the_limit():
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(256)) + packer.flush()
    limit = 8 * 1024 * 1024
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match="inflates to more"):
            inflate(bomb, limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * limit
