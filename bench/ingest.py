"""Durable ingest over HTTP: clients -> a real ``snc serve`` process -> the disk, per engine.

    python bench/ingest.py [--seconds 10] [--engines sqlite postgres] [--writers 8 100]

Every figure counts acknowledged batches only; every commit is synced and all rules are on. Clients
are sockets that send prepared bytes, in processes of their own, so that what is measured is the
service. Big batches: 1000 layers x 20 steps x 5 metrics (0.4 MB). Small ones: 100 layers x 1 step x
5 metrics, a run per writer. Full float32 mantissas. "per core" divides by the CPU time that the
service process took, the server of PostgreSQL apart. PostgreSQL comes from pip, on this machine,
with fsync on and otherwise its defaults.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from store import METRICS, Walk, calibrate, table

from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, LayerTable, encode

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))


class Case(NamedTuple):
    """One load: ``writers`` send batches of ``steps`` x ``layers``."""

    name: str
    writers: int
    layers: int
    steps: int

    @property
    def values(self) -> int:
        return self.layers * self.steps * len(METRICS)

    @property
    def most_per_second(self) -> int:
        """Return how many batches are prepared per second: 20 M values, or 6000 small batches."""
        return 200 if self.steps > 1 else 6_000


class Sent(NamedTuple):
    """What one client process got acknowledged, and how long each took, in seconds."""

    delays: list[float]
    refused: int


def prepared(port: int, run: str, layers: LayerTable, num: int, steps: int) -> list[bytes]:
    """Return whole requests, so that sending them is all that a client does."""
    walk, found = Walk("w", layers), []
    for _ in range(num):
        body = encode(walk.batch(steps))
        head = (
            f"POST /api/v1/runs/{run}/batches HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def answered(connection: socket.socket) -> int:
    """Read one answer and return its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65_536)
    return int(head.split(b" ", 2)[1])


def client(port: int, case: Case, numbers: range, start, seconds: float, out) -> None:
    """Send from a thread per writer; put a `Sent` into ``out``."""
    layers, num = table(case.layers), round(seconds * case.most_per_second / case.writers)
    requests = {n: prepared(port, f"{case.name}{n}", layers, num, case.steps) for n in numbers}
    sent = Sent([], 0)
    refused = []

    def write(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for request in requests[number]:
                since = time.perf_counter()
                if since > end:
                    return
                connection.sendall(request)
                status = answered(connection)
                if status != 200:
                    refused.append(status)
                    return
                sent.delays.append(time.perf_counter() - since)
            refused.append(0)  # ran out of what was prepared

    start.wait()
    end = time.perf_counter() + seconds
    threads = [threading.Thread(target=write, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put(Sent(sent.delays, len(refused)))


def measure(url: str, pid: int, case: Case, seconds: float) -> None:
    port, layers = int(url.rpartition(":")[2]), table(case.layers)
    for number in range(case.writers):
        run = f"{case.name}{number}"
        httpx.post(f"{url}/api/v1/runs", json={"run": run}).raise_for_status()
        httpx.put(
            f"{url}/api/v1/runs/{run}/layer-tables/{layers.hash}",
            content=layers.body,
            headers={"Content-Type": JSON_MEDIA_TYPE},
        ).raise_for_status()
    num_clients = min(2, case.writers)
    start, out = multiprocessing.Barrier(num_clients + 1), multiprocessing.Queue()
    clients = [
        multiprocessing.Process(
            target=client,
            args=(port, case, range(i, case.writers, num_clients), start, seconds, out),
        )
        for i in range(num_clients)
    ]
    for one in clients:
        one.start()
    start.wait()
    began, cpu = time.perf_counter(), cpu_seconds(pid)
    sent = [out.get() for _ in clients]
    took, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu
    for one in clients:
        one.join()
    delays = np.array([delay for s in sent for delay in s.delays])
    values = len(delays) * case.values
    print(
        f"  {case.name}: {case.writers} writers x {case.layers} layers x {case.steps} steps: "
        f"{len(delays) / took:.0f} batches/s, {values / took / 1e6:.2f} M values/s "
        f"({values / cpu / 1e6:.2f} M per core of the service), "
        f"p50 {np.quantile(delays, 0.5) * 1e3:.1f} ms, p99 {np.quantile(delays, 0.99) * 1e3:.1f} ms"
        + (f", {sum(s.refused for s in sent)} writers ended early" * any(s.refused for s in sent))
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(store: str, log: Path) -> Iterator[tuple[str, int]]:
    """Run a service on ``store``; yield its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "snc_service.cli", "serve", f"--port={port}"]
    env = {**os.environ, "SNC_STORE": store, "SNC_ACCESS_LOG": "0", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        while True:
            try:
                httpx.get(f"{url}/readyz", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit(log.read_text()) from None
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def stores(engine: str, folder: Path) -> Iterator[str]:
    if engine == "sqlite":
        yield f"sqlite:///{folder}/snc.db"
        return
    from postgres_server import running_postgres

    with running_postgres(("fsync=on", "max_wal_size=4GB")) as server:
        yield server.new_url()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--writers", type=int, nargs="+", default=[8, 100])
    arguments = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    cases = [Case("big", 4, 1_000, 20)]
    cases += [Case(f"small{n}x", n, 100, 1) for n in arguments.writers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibrate(folder)
        for engine in arguments.engines:
            print(f"{engine}:")
            with stores(engine, folder) as store, serving(store, folder / "log") as (url, pid):
                for case in cases:
                    measure(url, pid, case, arguments.seconds)


if __name__ == "__main__":
    main()
