"""Durable ingest over HTTP: clients -> a real ``snc serve`` process -> the disk, per engine.

    python bench/ingest.py [--seconds 8] [--engines sqlite postgres]

Every figure counts acknowledged batches only, and every commit is synced. Big batches: 4 writers of
one run each, 1000 layers x 20 steps x 5 metrics (0.4 MB). Small ones: 100 writers of one run each,
100 layers x 1 step x 5 metrics; closed loop (each sends when it has its answer), and open loop (800
a second in all, Poisson, each timed from when it was to be sent, its answer or not). Full float32
mantissas; a writer's values come again after 8 batches. With detection on, all rules judge every
row; off, the same service runs with rules that say nothing. Clients are processes of their own that
send prepared bytes from one thread, on the same machine: what they take is printed beside what the
service takes. "per core" divides by the CPU time of the service process, the server of PostgreSQL
apart. PostgreSQL comes from pip, on this machine, with fsync on and otherwise its defaults.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from snc_service import app
from snc_service.cli.main import main as snc
from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, LayerTable, encode

sys.path.append(str(Path(__file__).resolve().parent / "service"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from store import METRICS, Quiet, Walk, calibrate, table

BIG_VALUES = 10e6  # per second and core of the service
SMALL_PER_SECOND, SMALL_P99 = 2_000.0, 0.050
OPEN_PER_SECOND, OPEN_P99 = 800.0, 0.020
RULES_SHARE = 0.8  # of the throughput without detection
SERVE = "--serve-without-rules"
PAYLOADS = 8  # of a writer, over and over: all of them would not fit into memory


class Case(NamedTuple):
    """One load: ``writers`` send batches of ``steps`` x ``layers``, ``per_second`` or at once."""

    name: str
    writers: int
    layers: int
    steps: int
    per_second: float | None = None

    @property
    def values(self) -> int:
        return self.layers * self.steps * len(METRICS)

    @property
    def prepared_per_second(self) -> float:
        """Return how many batches are prepared: 40 M values a second, or 5000 small batches."""
        return self.per_second or (400 if self.steps > 1 else 5_000)


class Sent(NamedTuple):
    """What one client got acknowledged, how long each took, and its CPU time, in seconds."""

    delays: list[float]
    refused: int
    ran_out: int
    cpu: float


class Figures(NamedTuple):
    """What a case came to."""

    per_second: float
    per_core: float
    p99: float


def prepared(port: int, run: str, layers: LayerTable, num: int, steps: int) -> list[Request]:
    """Return whole requests, so that sending them is all that a client does."""
    walk, found = Walk("w", layers), []
    for number in range(num):
        if number < PAYLOADS:
            one = walk.batch(steps)
        else:  # a header depends on no value
            at = tuple(range(number * steps, (number + 1) * steps))
            one = replace(one, seq=number, steps=at, values=one.values[:, :, :0])
        body = encode(one)
        split = 8 + int.from_bytes(body[4:8], "little")
        values = body[split:] if number < PAYLOADS else found[number % PAYLOADS].values
        head = (
            f"POST /api/v1/runs/{run}/batches HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {split + len(values)}\r\n\r\n"
        )
        found.append(Request(head.encode() + body[:split], values))
    return found


class Request(NamedTuple):
    """A request in two pieces: many share their values."""

    head: bytes
    values: bytes


class Writer:
    """One connection: at most one batch on its way, others wait since they were ``due``."""

    def __init__(self, port: int, requests: list[Request]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = deque(requests)
        self.due: deque[float] = deque()
        self.since: float | None = None
        self.answer = bytearray()

    def send(self) -> None:
        """Send the next batch that is due, if the one before has its answer."""
        if self.since is None and self.due and self.requests:
            self.since = self.due.popleft()
            head, values = self.requests.popleft()
            sent = self.socket.sendmsg((head, values))
            if sent < len(head) + len(values):
                self.socket.sendall((head + values)[sent:])

    def status(self) -> int | None:
        """Read; return the status if the answer is complete."""
        self.answer += self.socket.recv(65_536)
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return None
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return None
        self.answer.clear()
        return int(head.split(b" ", 2)[1])


def drive(writers: list[Writer], case: Case, seconds: float, share: float) -> Sent:
    """Send for ``seconds``, then wait for what is on its way."""
    delays, refused, ran_out = [], 0, 0
    cpu, now = time.process_time(), time.perf_counter()
    end = now + seconds
    rng, turn = np.random.default_rng(len(writers)), 0
    pause = None if case.per_second is None else 1 / (case.per_second * share)
    next_at = end if pause is None else now
    with selectors.DefaultSelector() as selector:
        for writer in writers:
            selector.register(writer.socket, selectors.EVENT_READ, writer)
            if pause is None:
                writer.due.append(time.perf_counter())
                writer.send()
        while now < end or any(w.since is not None for w in writers):
            wait = max(0.0, next_at - now) if next_at < end else 0.05
            for key, _ in selector.select(min(wait, 0.05)):
                writer, now = key.data, time.perf_counter()
                status = writer.status()
                if status is None:
                    continue
                delays.append(time.perf_counter() - writer.since)
                refused += status != 200
                writer.since = None
                if pause is None and now < end:
                    writer.due.append(now)
                    ran_out += not writer.requests
                writer.send()
            now = time.perf_counter()
            while next_at <= now and next_at < end and pause is not None:
                writer = writers[turn % len(writers)]
                writer.due.append(next_at)
                writer.send()
                turn, next_at = turn + 1, next_at + rng.exponential(pause)
    return Sent(delays, refused, ran_out, time.process_time() - cpu)


def client(port: int, case: Case, numbers: range, start, seconds: float, out) -> None:
    """Be a process that writes for the runs of some numbers; put a `Sent` into ``out``."""
    layers = table(case.layers)
    num = round(1.2 * seconds * case.prepared_per_second / case.writers) + 20
    writers = [
        Writer(port, prepared(port, f"{case.name}{n}", layers, num, case.steps)) for n in numbers
    ]
    gc.disable()
    start.wait()
    out.put(drive(writers, case, seconds, len(numbers) / case.writers))


def measure(url: str, pid: int, case: Case, seconds: float) -> Figures:
    port, layers = int(url.rpartition(":")[2]), table(case.layers)
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30) as asked:
        for number in range(case.writers):
            run = f"{case.name}{number}"
            asked.post("/runs", json={"run": run}).raise_for_status()
            asked.put(
                f"/runs/{run}/layer-tables/{layers.hash}",
                content=layers.body,
                headers={"Content-Type": JSON_MEDIA_TYPE},
            ).raise_for_status()
    num_clients = 2 if case.steps > 1 else 1
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
    figures = Figures(
        len(delays) / took, len(delays) * case.values / cpu, float(np.quantile(delays, 0.99))
    )
    told = "".join(
        f", {sum(getattr(s, name) for s in sent)} {name}"
        for name in ("refused", "ran_out")
        if any(getattr(s, name) for s in sent)
    )
    print(
        f"    {case.name}: {figures.per_second:.0f} batches/s, "
        f"{figures.per_second * case.values / 1e6:.2f} M values/s "
        f"({figures.per_core / 1e6:.2f} M per core), p50 {np.quantile(delays, 0.5) * 1e3:.1f} ms, "
        f"p99 {figures.p99 * 1e3:.1f} ms; per batch {cpu / len(delays) * 1e6:.0f} us CPU of the "
        f"service, {sum(s.cpu for s in sent) / len(delays) * 1e6:.0f} of the clients{told}",
        flush=True,
    )
    return figures


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(store: str, log: Path, *, rules: bool = True) -> Iterator[tuple[str, int]]:
    """Run a service on ``store``; yield its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    start = ["-m", "snc_service.cli"] if rules else [__file__, SERVE]
    command = [sys.executable, *start, "serve", f"--port={port}"]
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


def target(what: str, is_met: bool, figure: str, wanted: str) -> None:
    print(f"    {what}: {figure}, target {wanted}: {'met' if is_met else 'missed'}", flush=True)


def judge(on: dict[str, Figures], off: dict[str, Figures]) -> None:
    """Print the targets beside what was measured."""
    for name, found in (("detection off", off), ("detection on", on)):
        values = found["big"].per_core
        target(
            f"big batches per core, {name}",
            values >= BIG_VALUES,
            f"{values / 1e6:.1f} M values/s",
            f">= {BIG_VALUES / 1e6:.0f} M",
        )
    small, paced = on["small"], on["paced"]
    target(
        "small batches, 100 writers",
        small.per_second >= SMALL_PER_SECOND and small.p99 <= SMALL_P99,
        f"{small.per_second:.0f}/s, p99 {small.p99 * 1e3:.1f} ms",
        f">= {SMALL_PER_SECOND:.0f}/s, <= {SMALL_P99 * 1e3:.0f} ms",
    )
    target(
        f"acknowledgement at {OPEN_PER_SECOND:.0f} small batches/s, 100 clients",
        paced.p99 <= OPEN_P99,
        f"p99 {paced.p99 * 1e3:.1f} ms",
        f"<= {OPEN_P99 * 1e3:.0f} ms",
    )
    for name in ("big", "small"):
        share = on[name].per_second / off[name].per_second
        target(
            f"{name} batches with rules on",
            share >= RULES_SHARE,
            f"{share:.0%} of rules off",
            f">= {RULES_SHARE:.0%}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    arguments = parser.parse_args()
    print(f"$ python bench/ingest.py {' '.join(sys.argv[1:])}")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    loads = [Case("big", 4, 1_000, 20), Case("small", 100, 100, 1)]
    paced = Case("paced", 100, 100, 1, OPEN_PER_SECOND)
    for engine in arguments.engines:
        print(f"{engine}:")
        found: dict[bool, dict[str, Figures]] = {False: {}, True: {}}
        for rules in (False, True):
            print(f"  detection {'on' if rules else 'off'}:")
            with (
                tempfile.TemporaryDirectory() as name,
                stores(engine, Path(name)) as store,
                serving(store, Path(name) / "log", rules=rules) as (url, pid),
            ):
                calibrate(Path(name))
                for case in [*loads, paced] if rules else loads:
                    found[rules][case.name] = measure(url, pid, case, arguments.seconds)
        judge(found[True], found[False])


if __name__ == "__main__":
    if SERVE in sys.argv:
        app.RunRules = Quiet
        sys.exit(snc(sys.argv[sys.argv.index(SERVE) + 1 :]))
    main()
