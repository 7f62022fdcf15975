"""What a stranger may try against a real process: refused with 4xx, bounded in memory, survived."""

import gzip
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from api_cases import batch_of, table_of
from prometheus_client.parser import text_string_to_metric_families
from test_cli import environment

from snc_service.wire import MEDIA_TYPE, encode

MIB = 1024 * 1024
MAX_GROWTH_BYTES = 50 * MIB
JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": MEDIA_TYPE}
TABLE = table_of("fc1.weight", "fc2.weight")
GOOD = encode(batch_of(TABLE, writer="mutant", steps=(0, 1), sigma=[[1, 2], [3, 4]]))
BATCHES = "/api/v1/runs/r/batches"


class Victim:
    """A real service with short deadlines, and what it has said and used."""

    def __init__(self, process, url, log):
        self.pid, self.url, self.log = process.pid, url, log
        self.process = process
        self.address = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.http = httpx.Client(base_url=url, timeout=60)

    def memory(self, what):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024

    def connect(self):
        return socket.create_connection(self.address, timeout=30)

    def raw(self, data):
        """Send bytes as they are and return the status, 0: hung up without an answer."""
        with self.connect() as peer:
            try:
                peer.sendall(data)
                head = peer.recv(4096)
            except OSError:
                return 0
        return int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0",
               f"--store=sqlite:///{folder / 'snc.db'}"]  # fmt: skip
    with (folder / "log").open("wb") as stderr, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env=environment(SNC_BODY_DEADLINE_SECONDS="1"),
    ) as process:  # fmt: skip
        url = process.stdout.readline().split("serves ")[1].split("/ ")[0]
        victim = Victim(process, url, folder / "log")
        yield victim
        victim.http.close()
        process.kill()


@pytest.fixture(autouse=True)
def survived(victim):
    """Whatever a test does: memory stays, the service works on, and no defect is in its log."""
    warm_up(victim)
    Path(f"/proc/{victim.pid}/clear_refs").write_text("5")  # the peak counts from here
    before, read = victim.memory("VmRSS"), victim.log.stat().st_size
    yield
    assert victim.process.poll() is None
    assert victim.http.get("/healthz").status_code == 200
    warm_up(victim)
    assert victim.memory("VmHWM") - before <= MAX_GROWTH_BYTES
    lines = [json.loads(line) for line in victim.log.read_bytes()[read:].splitlines()]
    assert [line for line in lines if line["level"] == "error" or "trace" in line] == []
    assert [line for line in lines if line.get("status", 0) in (500, 501, 502, 504)] == []


def warm_up(victim):
    """Do what an honest client does; also the largest batch once, so that its buffers are there."""
    http = victim.http
    assert http.post("/api/v1/runs", json={"run": "r"}).status_code in (200, 201)
    path = f"/api/v1/runs/r/layer-tables/{TABLE.hash}"
    assert http.put(path, content=TABLE.body, headers=JSON).status_code == 204
    writer = f"honest{time.monotonic_ns()}"
    body = {"writer": writer, "seq": 0, "steps": [1], "layers": ["fc1.weight"],
            "metrics": {"sigma": [[1.0]]}}  # fmt: skip
    assert http.post(BATCHES, json=body).status_code == 200
    assert http.get("/metrics").status_code == 200
    assert http.get("/api/v1/runs/r/layers").json()["items"]


# Bombs


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


# Heads


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


# Slow ones


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


# Paths

TRAVERSALS = ["/../../etc/passwd", "/ui/../../../etc/passwd", "/ui/..%2f..%2f..%2fetc%2fpasswd",
              "/ui/%2e%2e/%2e%2e/etc/passwd", "/ui/....//....//etc/passwd", "/ui//etc/passwd",
              "/ui/..%5c..%5cboot.ini", "/ui/%00", "/ui/%ff%fe", "/api/v1/runs/..%2f..%2fsecret",
              "/api/v1/runs/../audit/x", "/problems/../../etc/passwd", "/problems/%2e%2e",
              "/metrics/runs/../../etc", "/api/v1/runs/r/layers/..%2f..%2fx/history",
              "/api/v1/projects/..%2f..%2fx/policy", "//evil.example/%2e%2e",
              "/%c0%ae%c0%ae/", "/api/v1/runs/%00", "/api/v1/runs/r%00x"]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_a_path_that_climbs_gets_nowhere(victim, path):
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert 400 <= victim.raw(request.encode()) < 500


# Names

WORDS = ["'; drop table run; --", '" or "1"="1', "<img src=x onerror=alert(1)>", "</script>",
         "=cmd|' /C calc'!A0", "@SUM(1)", "{{7*7}}", "${jndi:ldap://x}", "%s%n%x", "%(run)s",
         "../../../etc/passwd", "a\\b", 'a"b', "a{b=\"c\"} 1", "\u202egnp.exe", "\ud800", "\x00",
         "a\nb", "a\r\nX-Evil: 1", "\x1b[2J", "\u2028", "\U0001f600" * 64, "é" * 128, "x" * 257,
         " ", "", "NaN", "null", "-1"]  # fmt: skip


def dumped(value):
    """Return JSON; a lone surrogate goes out as an escape, as a stranger would write it."""
    return json.dumps(value).encode("ascii")


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_name_is_refused_or_kept_letter_by_letter(victim, word):
    http = victim.http
    kept = {}
    for field, value in (("run", word), ("project", word), ("name", word), ("tags", [word]),
                         ("config", {word: word})):  # fmt: skip
        run = {"run": f"n{random.randrange(10**9)}"} | {field: value}
        told = http.post("/api/v1/runs", content=dumped(run), headers=JSON)
        assert told.status_code in (201, 400, 422), (field, told.text)
        if told.is_success:
            kept[field] = http.get(told.headers["Location"]).json()[field]
            assert kept[field] == value
    assert ("run" in kept) == ("project" in kept) == (word in ("NaN", "null"))
    for path, body in ((f"{BATCHES}", {"writer": word, "seq": 0, "steps": [1],
                                       "scalars": {"loss": [1]}}),
                       (f"{BATCHES}", {"writer": "x", "seq": 0, "steps": [1],
                                       "scalars": {word: [1]}}),
                       (f"{BATCHES}", {"writer": "x", "seq": 0, "steps": [1], "layers": ["a"],
                                       "metrics": {word: [[1]]}}),
                       (f"{BATCHES}", {"writer": f"l{random.randrange(10**9)}", "seq": 0,
                                       "steps": [1], "layers": [word],
                                       "metrics": {"sigma": [[1]]}}),
                       ("/api/v1/runs/r/commands", {"action": word}),
                       ("/api/v1/session", {"token": word}),
                       ("/api/v1/tokens", {"name": word, "scopes": ["read"]})):  # fmt: skip
        told = http.post(path, content=dumped(body), headers=JSON)
        assert told.status_code in (200, 400, 409, 422), (body, told.text)
    pattern = {"entries": [{"pattern": word, "threshold": 1}]}
    told = http.put("/api/v1/projects/p/policy", content=dumped(pattern), headers=JSON)
    assert told.status_code in (200, 400, 422)
    for headers in ({"X-Request-ID": word}, {"If-Match": word}, {"SNC-Commands-Seen": word},
                    {"Origin": word}, {"Host": word},
                    {"Cookie": f"snc_session={word}"}):  # fmt: skip
        try:
            told = http.put("/api/v1/projects/q/policy", json=pattern, headers=headers)
        except (httpx.HTTPError, UnicodeError, ValueError):
            continue  # such a header cannot be sent
        assert told.status_code < 500
        assert "X-Evil" not in told.headers
    samples = [
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    ]
    assert len(samples) == len(set(samples))


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_word_in_a_url_is_a_question_about_nothing(victim, word):
    text = quote(word, safe="", errors="surrogatepass")
    for path in (f"runs/{text}", f"runs/r/layers/{text}/history", f"projects/{text}/policy",
                 f"runs/r/scalars/{text}/history", f"runs?project={text}", f"runs?cursor={text}",
                 f"runs/r/layers?sort={text}", f"runs/r/events?rule={text}",
                 f"runs/r/events?layer={text}", f"runs?{text}=1", f"runs/r/history?layer={text}",
                 f"runs/r/heatmap?metric={text}", f"audit?author={text}"):  # fmt: skip
        told = victim.http.get(f"/api/v1/{path}")
        assert told.status_code < 500, (path, told.text)
        if told.is_success and "/layers/" in path:
            assert told.json()["layer"] == word


# Numbers

NUMBERS = ["-1", "-0", "+1", "01", "1.5", "1e3", "1e999", "NaN", "Infinity", "0x10", "1_000",
           "9007199254740993", "9223372036854775808", "18446744073709551616", "-9" * 30,
           "9" * 5_000, "\u0661"]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_out_of_bounds_is_refused(victim, number):
    text = quote(number)
    for path in (f"runs?limit={text}", f"runs/r/heatmap?points={text}",
                 f"runs/r/heatmap?layers={text}", f"runs/r/layers/fc1.weight/history?points={text}",
                 f"runs/r/history?layer=fc1.weight&attempt={text}",
                 f"runs/r/events?limit={text}"):  # fmt: skip
        told = victim.http.get(f"/api/v1/{path}")
        assert told.status_code in (200, 404, 422), (path, told.text)
        if told.is_success:
            assert number in ("+1", "01", "-0", "1_000", "1e3"), (path, number)
    for field in ("seq", "attempt", "skipped", "dropped"):
        body = {"writer": "x", "seq": 0, "steps": [1], "scalars": {"a": [1]}, field: "?"}
        content = json.dumps(body).replace('"?"', number).encode()
        told = victim.http.post(BATCHES, content=content, headers=JSON)
        assert told.status_code in (400, 422) or number == "-0", told.text
    for body in ('{"writer":"x","seq":0,"steps":[?],"scalars":{"a":[1]}}',
                 '{"writer":"x","seq":0,"steps":[1],"scalars":{"a":[1]},"times":[?]}'):  # fmt: skip
        content = body.replace("?", number).encode()
        told = victim.http.post(BATCHES, content=content, headers=JSON)
        assert told.status_code in (200, 400, 409, 422), told.text


def test_a_value_that_float32_cannot_hold_is_refused(victim):
    for number in ("1e39", "-1e39", "1e999", '"1.5"', "true", "[]", "{}"):
        body = '{"writer":"f","seq":0,"steps":[1],"scalars":{"a":[?]}}'.replace("?", number)
        told = victim.http.post(BATCHES, content=body, headers=JSON)
        assert told.status_code == 422, (number, told.text)


# Encodings


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
