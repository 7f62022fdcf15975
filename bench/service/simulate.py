"""How many jobs a set-up carries, by replay, and on paper what 10,000 jobs would need.

    python bench/service/simulate.py [--engines sqlite postgres] [--hold 6] [--ramp 50 100 200 ...]

A job reports one step a second: 200 layers x 5 metrics. It behaves as the sender of the client
does: a row is sent at once; while a batch is on its way rows wait, and leave together in the next
one. One process per service stands for its jobs, each with a connection and a run of its own, on
loopback, so senders, services and database share this machine. SQLite has one service, PostgreSQL
two, each with half of the jobs. Jobs are added level by level; a level lasts ``--hold`` seconds.
Timed is each row from when it was due to the acknowledgement of its batch.

A set-up *carries* a level if p99 is at most a second: a step is stored before the next one is due.
It *keeps up* if the rows of the level were acknowledged nearly all, in larger batches and later.
The ramp ends at the first level that it does not keep up with, or after 100 seconds per engine.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import platform
import selectors
import socket
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
import psycopg

sys.path.append(str(Path(__file__).resolve().parents[1]))

from ingest import cpu_seconds, serving, stores
from store import METRICS, calibrate, table

from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, Batch, encode

LAYERS, PERIOD = 200, 1.0
VALUES = LAYERS * len(METRICS)  # of a row
CARRIED_SECONDS, KEPT_SHARE = 1.0, 0.95
MOST_SECONDS = 100.0  # of an engine
LEVELS = (25, 50, 100, 150, 200, 300, 400, 500, 600, 800, 1_000, 1_250, 1_500)
TABLE = table(LAYERS)
ROWS = np.random.default_rng(0).normal(1.0, 2e-3, (64, len(METRICS), 1, LAYERS)).astype(np.float32)


@dataclass(eq=False)
class Job:
    """A job as its service sees it: at most one batch on its way, rows wait since they were due."""

    run: str
    port: int
    socket: socket.socket = field(init=False)
    waiting: deque[float] = field(default_factory=deque)
    sent: list[float] = field(default_factory=list)
    answer: bytearray = field(default_factory=bytearray)
    seq: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self) -> None:
        if self.sent or not self.waiting:
            return
        self.sent = list(self.waiting)
        self.waiting.clear()
        steps = tuple(range(self.step, self.step + len(self.sent)))
        values = np.concatenate([ROWS[step % len(ROWS)] for step in steps], axis=1)
        body = encode(Batch("w", self.seq, TABLE.hash, steps, METRICS, values))
        self.seq, self.step = self.seq + 1, self.step + len(steps)
        head = (
            f"POST /api/v1/runs/{self.run}/batches HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + body)

    def hear(self, now: float) -> list[float]:
        """Read; return the delays of the rows if their acknowledgement is complete."""
        self.answer += self.socket.recv(65_536)
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return []
        if len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return []
        assert head.split(b" ", 2)[1] == b"200", bytes(self.answer)
        self.answer.clear()
        delays, self.sent = [now - due for due in self.sent], []
        return delays


def send_all(port: int, name: str, orders: Connection) -> None:
    """Be the process of some jobs: ``orders`` are numbers of jobs to have; answer with delays."""
    jobs: list[Job] = []
    dues: list[tuple[float, int]] = []
    heard: list[float] = []
    rng, due_rows = np.random.default_rng(port), 0
    with selectors.DefaultSelector() as selector:
        while True:
            if orders.poll():
                wanted = orders.recv()
                orders.send((heard, due_rows, time.process_time()))
                if wanted is None:
                    return
                heard, due_rows = [], 0
                for number in range(len(jobs), wanted):
                    jobs.append(Job(f"{name}{number}", port))
                    selector.register(jobs[-1].socket, selectors.EVENT_READ, jobs[-1])
                    heapq.heappush(dues, (time.perf_counter() + rng.uniform(0, PERIOD), number))
            now = time.perf_counter()
            while dues and dues[0][0] <= now:
                due, number = heapq.heappop(dues)
                heapq.heappush(dues, (due + PERIOD, number))
                jobs[number].waiting.append(due)
                jobs[number].send()
                due_rows += 1
            wait = min(0.05, max(0.0, dues[0][0] - time.perf_counter())) if dues else 0.05
            for key, _ in selector.select(wait):
                heard += key.data.hear(time.perf_counter())
                key.data.send()


def register(url: str, name: str, numbers: range) -> None:
    headers = {"Content-Type": JSON_MEDIA_TYPE}
    with httpx.Client(base_url=f"{url}/api/v1", timeout=60) as http:
        for number in numbers:
            http.post("/runs", json={"run": f"{name}{number}"}).raise_for_status()
            path = f"/runs/{name}{number}/layer-tables/{TABLE.hash}"
            http.put(path, content=TABLE.body, headers=headers).raise_for_status()


def database_seconds(url: str) -> float:
    """Return the CPU time of all processes of a PostgreSQL on this machine but its first."""
    if not url.startswith("postgres"):
        return 0.0
    with psycopg.connect(url) as connection:
        pids = connection.execute("select pid from pg_stat_activity").fetchall()
        return sum(cpu_seconds(pid) for (pid,) in pids)


def machine_seconds() -> float:
    """Return the busy seconds of all cores together: what is neither idle nor waits for a disk."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


@dataclass
class Level:
    """What a level came to. CPU in cores."""

    jobs: int
    rows: float  # acknowledged per second
    share: float  # of the rows that were due
    p50: float
    p99: float
    services: list[float]
    database: float  # the sessions and helpers of PostgreSQL
    senders: float
    machine: float  # everything, other programs too

    @property
    def carries(self) -> bool:
        return self.p99 <= CARRIED_SECONDS and self.share >= KEPT_SHARE

    def show(self) -> None:
        services = " + ".join(f"{each:.2f}" for each in self.services)
        print(
            f"    {self.jobs:5d} jobs: {self.rows:5.0f} rows/s ({self.share:4.0%} of those due), "
            f"p50 {self.p50 * 1e3:.0f} ms, p99 {self.p99 * 1e3:.0f} ms; cores: services {services},"
            f" database {self.database:.2f}, senders {self.senders:.2f}, "
            f"machine {self.machine:.2f} of {os.cpu_count()}",
            flush=True,
        )

    def cause(self) -> str:
        busiest, cores = max(self.services), os.cpu_count() or 1
        if busiest >= 0.85:
            return f"the interpreter of a service ({busiest:.2f} of one core)"
        if self.machine >= 0.93 * cores:
            return (
                f"the processors of this machine ({self.machine:.2f} of {cores} cores; services "
                f"{sum(self.services):.2f}, database {self.database:.2f}, the rest others)"
            )
        return "the disk: neither a service nor the processors were busy"


class Crowd:
    """The sender processes, one per service."""

    def __init__(self, store: str, urls: list[str], pids: list[int]) -> None:
        self.store, self.urls, self.pids, self.jobs = store, urls, pids, 0
        self.pipes, self.processes = [], []
        for i, url in enumerate(urls):
            mine, theirs = multiprocessing.Pipe()
            port = int(url.rpartition(":")[2])
            process = multiprocessing.Process(target=send_all, args=(port, f"s{i}-", theirs))
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)
        self.cpu = [0.0] * len(urls)

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.join()

    def level(self, jobs: int, hold: float) -> Level:
        each = jobs // len(self.urls)
        for i, url in enumerate(self.urls):
            register(url, f"s{i}-", range(self.jobs // len(self.urls), each))
        self.jobs = each * len(self.urls)
        self._ask(each)
        time.sleep(1.5)  # connections are made, the first rows are on their way
        self._ask(each)
        began, busy = time.perf_counter(), machine_seconds()
        services = [cpu_seconds(pid) for pid in self.pids]
        database = database_seconds(self.store)
        before = list(self.cpu)
        time.sleep(hold)
        delays, due = self._ask(each)
        took = time.perf_counter() - began
        found = np.array(delays or [float("inf")])
        return Level(
            self.jobs,
            len(delays) / took,
            len(delays) / max(due, 1),
            float(np.quantile(found, 0.5)),
            float(np.quantile(found, 0.99)),
            [(cpu_seconds(p) - b) / took for p, b in zip(self.pids, services, strict=True)],
            (database_seconds(self.store) - database) / took,
            sum(a - b for a, b in zip(self.cpu, before, strict=True)) / took,
            (machine_seconds() - busy) / took,
        )

    def _ask(self, jobs: int) -> tuple[list[float], int]:
        delays, due = [], 0
        for pipe in self.pipes:
            pipe.send(jobs)
        for i, pipe in enumerate(self.pipes):
            heard, rows, self.cpu[i] = pipe.recv()
            delays += heard
            due += rows
        return delays, due


def simulate(engine: str, ramp: list[int], hold: float) -> list[Level]:
    number = 1 if engine == "sqlite" else 2
    levels: list[Level] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        store = stack.enter_context(stores(engine, folder))
        calibrate(folder)
        started = [stack.enter_context(serving(store, folder / f"log{i}")) for i in range(number)]
        crowd = Crowd(store, [url for url, _ in started], [pid for _, pid in started])
        stack.callback(crowd.close)
        began = time.perf_counter()
        for jobs in ramp:
            for _ in range(2):  # a disk that hangs once is no ceiling
                level = crowd.level(jobs, hold)
                level.show()
                if level.carries:
                    break
            levels.append(level)
            if levels[-1].share < KEPT_SHARE or time.perf_counter() - began > MOST_SECONDS:
                break
    return levels


def conclude(levels: list[Level]) -> None:
    carried = [level for level in levels if level.carries]
    kept = [level for level in levels if level.share >= KEPT_SHARE]
    print(f"    carries {carried[-1].jobs if carried else 0} jobs, "
          f"keeps up with {kept[-1].jobs if kept else 0}")  # fmt: skip
    broken = [level for level in levels if not level.carries]
    if broken:
        print(f"    what broke first, at {broken[0].jobs} jobs: {broken[0].cause()}")
    else:
        print("    nothing broke: the ramp or the time was over")
    if carried:
        on_paper(carried[-1])


def on_paper(best: Level) -> None:
    """Print what 10,000 jobs need if all costs grow with the rows, from the best level."""
    rows, values = 10_000 / PERIOD, 10_000 / PERIOD * VALUES
    services, database = sum(best.services) / best.rows, best.database / best.rows
    print(
        f"    on paper, 10,000 jobs = {rows:,.0f} rows/s = {values / 1e6:.0f} M values/s: "
        f"{rows * services:.1f} cores in services ({services * 1e6:.0f} us a row), so "
        f"{np.ceil(rows * services / 0.7):.0f} processes at 70 %, and at least 10 for their "
        f"connections (1,000 each);\n      {values * 4.2 / 1e6:.0f} MB/s of network, "
        f"{values * 2.4 * 86_400 / 1e12:.1f} TB a day at rest at 2.4 bytes a value"
    )
    if database:
        print(
            f"      in the database {rows * database:.1f} cores ({database * 1e6:.0f} us a row), "
            f"{values * 8 / 1e6:.0f} MB/s of log at 8 bytes a value\n"
            f"      on a Citus of 16 nodes, if runs spread evenly and a row costs there what it "
            f"costs here: {rows / 16:.0f} commits/s, {rows * database / 16:.1f} cores and "
            f"{values * 8 / 16e6:.0f} MB/s of log a node; a transaction has one run there, so only "
            f"the node itself groups syncs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--hold", type=float, default=6)
    parser.add_argument("--ramp", type=int, nargs="+", default=LEVELS)
    asked = parser.parse_args()
    print(f"$ python bench/service/simulate.py {' '.join(sys.argv[1:])}")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    for engine in asked.engines:
        print(f"{engine}, {'one service' if engine == 'sqlite' else 'two services'}:", flush=True)
        conclude(simulate(engine, asked.ramp, asked.hold))


if __name__ == "__main__":
    main()
