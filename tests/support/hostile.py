"""A real service with short deadlines as a victim, and what must hold whatever is done to it."""

import gzip
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
from api_cases import batch_of, table_of
from test_cli import environment

from snc_service.wire import MEDIA_TYPE, Batch, encode

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


@contextmanager
def running_victim(folder: Path) -> Iterator[Victim]:
    """Run one; all that was done to it left it hardly larger than honest work of full size does."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0",
               f"--store=sqlite:///{folder / 'snc.db'}"]  # fmt: skip
    with (folder / "log").open("wb") as stderr, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env=environment(SNC_BODY_DEADLINE_SECONDS="1"),
    ) as process:  # fmt: skip
        try:
            url = process.stdout.readline().split("serves ")[1].split("/ ")[0]
            victim = Victim(process, url, folder / "log")
            warm_up(victim)
            fill_up(victim)
            # The service gives freed memory back now and then: the peak is what this work took.
            before = victim.memory("VmHWM")
            with closing(victim.http):
                yield victim
            grown = victim.memory("VmRSS") - before
            assert grown <= MAX_GROWTH_BYTES, f"{grown / MIB:.0f} MiB"
        finally:
            process.kill()


@contextmanager
def surviving(victim: Victim) -> Iterator[None]:
    """Whatever is done inside: memory stays, the service works on, no defect is in its log."""
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
    """Do what an honest client does."""
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


def fill_up(victim: Victim) -> None:
    """Send honest batches of nearly the largest size, JSON and packed: their buffers stay."""
    names = [f"layer{i}" for i in range(1_000)]
    values = np.random.default_rng(0).random((1, 1_000, len(names)), np.float32)
    table = table_of(*names)
    path = f"/api/v1/runs/r/layer-tables/{table.hash}"
    assert victim.http.put(path, content=table.body, headers=JSON).status_code == 204
    large = Batch("large", 0, table.hash, tuple(range(1_000)), ("sigma",), values)
    headers = {"Content-Encoding": "gzip", **BINARY}
    packed = gzip.compress(encode(large), 1)
    assert victim.http.post(BATCHES, content=packed, headers=headers).status_code == 200
    body = {"writer": "wide", "seq": 0, "steps": list(range(100)), "layers": names,
            "metrics": {"sigma": np.round(values[0, :100], 4).tolist()}}  # fmt: skip
    assert victim.http.post(BATCHES, json=body).status_code == 200
