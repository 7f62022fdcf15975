"""From an event to a webhook: how long it takes, and what dead receivers cost.

`python bench/service/alerts.py` starts a real `snc serve` on a new SQLite file and real HTTP
receivers on loopback. At random times (open loop, exponential gaps) a batch with a breach opens an
incident in a run of its own. Measured is the time from sending the batch to its acknowledgement,
and to the arrival of the webhook. Three times: one receiver; the same beside one that hangs, one
that nobody listens for and one that answers 500; and the same with ingest of four busy runs beside
it.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np

SECRET = "a secret of the benchmark"
TARGET_SECONDS = 2.0  # p99 from sending the batch to the webhook
LAYERS = [f"blocks.{i}.weight" for i in range(200)]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        run = re.search(rb'"run": "([^"]+)"', body)[1].decode()
        self.server.arrived.setdefault(run, time.perf_counter())
        if self.server.status == 0:
            self.server.over.wait(60)
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        pass


@contextmanager
def receiving(status: int) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Receiver)
    server.status, server.arrived, server.over = status, {}, threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def service(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0"]
    with (
        (folder / "serve.log").open("wb") as log,
        subprocess.Popen(
            [*command, f"--store=sqlite:///{folder}/snc.db"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "SNC_ALERT_NETWORKS": "127.0.0.0/8", "SNC_ACCESS_LOG": "0"},
        ) as process,
    ):
        try:
            url = re.search(r"http://\S+/", process.stdout.readline())[0]
            yield url.rstrip("/") + "/api/v1"
        finally:
            process.terminate()


def hook(port: int) -> dict[str, str]:
    return {"type": "webhook", "url": f"http://127.0.0.1:{port}/x", "secret": SECRET}


def route(http: httpx.Client, ports: dict[str, int]) -> None:
    document = {
        "receivers": {name: hook(port) for name, port in ports.items()},
        "routes": [{"receivers": list(ports)}],
    }
    http.put("/alerting", json=document).raise_for_status()


def breach(http: httpx.Client, run: str) -> tuple[float, float]:
    """Send the batch with the breach; return when, and when it was acknowledged."""
    http.post("/runs", json={"run": run}).raise_for_status()
    sigma = [[3.0] + [1.0] * (len(LAYERS) - 1)]
    batch = {"writer": "w", "seq": 0, "steps": [1], "layers": LAYERS,
             "metrics": {"sigma": sigma, "threshold": [[2.0] * len(LAYERS)]}}  # fmt: skip
    sent = time.perf_counter()
    http.post(f"/runs/{run}/batches", json=batch).raise_for_status()
    return sent, time.perf_counter()


def load(url: str, run: str, over: threading.Event) -> None:
    """Send healthy batches of 10 steps x 200 layers, ten a second."""
    with httpx.Client(base_url=url, timeout=30) as http:
        http.post("/runs", json={"run": run}).raise_for_status()
        for seq in range(10**6):
            steps = list(range(10 * seq, 10 * seq + 10))
            rows = [[1.0] * len(LAYERS)] * 10
            batch = {"writer": "w", "seq": seq, "steps": steps, "layers": LAYERS,
                     "metrics": {"sigma": rows}}  # fmt: skip
            http.post(f"/runs/{run}/batches", json=batch).raise_for_status()
            if over.wait(0.1):
                return


def measure(url: str, well: Server, name: str, events: int, gap: float) -> None:
    sent, acked = {}, {}
    rng = random.Random(0)
    with httpx.Client(base_url=url, timeout=30) as http:
        for number in range(events):
            run = f"{name}-{number}"
            sent[run], acked[run] = breach(http, run)
            time.sleep(rng.expovariate(1 / gap))
        deadline = time.monotonic() + 60
        while not sent.keys() <= well.arrived.keys() and time.monotonic() < deadline:
            time.sleep(0.05)
    missing = sent.keys() - well.arrived.keys()
    ack = np.array([acked[run] - sent[run] for run in sent])
    told = np.array([well.arrived[run] - sent[run] for run in sent.keys() - missing])
    p99 = float(np.percentile(told, 99))
    verdict = "met" if p99 <= TARGET_SECONDS and not missing else "missed"
    print(
        f"{name:>10} {events:>7} {len(missing):>7} {row(ack)}   {row(told)} {verdict:>8}",
        flush=True,
    )


def row(seconds: np.ndarray) -> str:
    p50, p99 = np.percentile(seconds, [50, 99])
    return f"{1e3 * p50:>8.0f} {1e3 * p99:>8.0f} {1e3 * seconds.max():>8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument(
        "--gap", type=float, default=0.25, help="seconds between events, on average"
    )
    options = parser.parse_args()
    print(f"python {platform.python_version()}, {os.cpu_count()} cores, SQLite, loopback; "
          f"{len(LAYERS)} layers; an event every {options.gap:g} s on average")  # fmt: skip
    print(
        f"{'':>10} {'':>7} {'':>7} {'sent to acknowledged, ms':^26}   {'sent to webhook, ms':^26}"
        f" {'target':>8}"
    )
    columns = f"{'p50':>8} {'p99':>8} {'max':>8}"
    print(f"{'case':>10} {'events':>7} {'missing':>7} {columns}   {columns} p99<=2 s")
    with (
        tempfile.TemporaryDirectory() as folder,
        receiving(200) as well,
        receiving(0) as stuck,
        receiving(500) as broken,
        socket.socket() as nobody,
        service(Path(folder)) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        nobody.bind(("127.0.0.1", 0))
        ports = {"well": well.server_port}
        route(http, ports)
        measure(url, well, "alone", options.events, options.gap)
        others = {"stuck": stuck.server_port, "broken": broken.server_port,
                  "nobody": nobody.getsockname()[1]}  # fmt: skip
        route(http, {**ports, **others})
        measure(url, well, "dead", options.events, options.gap)
        over = threading.Event()
        busy = [
            threading.Thread(target=load, args=(url, f"load-{i}", over), daemon=True)
            for i in range(4)
        ]
        for thread in busy:
            thread.start()
        measure(url, well, "busy", options.events, options.gap)
        over.set()
        for thread in busy:
            thread.join()
    print("dead: beside a receiver that hangs, one that answers 500 and one that refuses; "
          "busy: the same, and 4 runs x 10 batches/s x 2,000 values")  # fmt: skip


if __name__ == "__main__":
    main()
