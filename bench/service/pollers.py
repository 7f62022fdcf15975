"""What the service costs while nothing happens: its looks for work, and the CPU time of idle ones.

`python bench/service/pollers.py --store URL` fills an empty store: runs with rows in the tail of
which nothing is due, and an open incident for every run. It measures one look for due chunks, one
at all open incidents and one for waiting alerts. With ``--idle SECONDS`` it starts ``--replicas``
services on the store and measures the CPU time of each, and of the sessions of a PostgreSQL on this
machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import httpx
import psycopg

from snc_client.demo.service import free_port
from snc_service.store import Store, open_store
from snc_service.store.sql.compaction.due_chunks import DueChunks
from snc_service.store.sql.series import tail_summary
from snc_service.store.types import EVERYTHING

RUN = (
    "insert into run (run_id, run, name, project, state, created_at, updated_at, last_step, "
    "next_tail) values (?, ?, ?, 'p', 'active', ?, ?, ?, ?)"
)
TAIL = (
    "insert into tail (run_id, id, attempt, layout, step0, step1, n, received_at, size, v) "
    "values (?, ?, 0, 1, ?, ?, 1, ?, 2000, ?)"
)
INCIDENT = (
    "insert into incident (run_id, state, severity, body, opened_at, updated_at, revision, "
    "omitted) values (?, 'open', 'warning', ?, 1, 1, 1, 0)"
)
BODY = "[" + " " * 4_000 + "]"  # of a usual length


def fill(store: Store, runs: int, rows: int, incidents: int, now: float) -> None:
    for first in range(1, max(runs, incidents) + 1, 100):
        numbers = range(first, min(first + 100, max(runs, incidents) + 1))
        with store._database.write() as connection:
            last = rows - 1
            connection.executemany(
                RUN, [(i, f"r{i}", f"r{i}", now, now, last, rows + 1) for i in numbers]
            )
            connection.executemany(
                "insert into run_config (run_id, config, tags) values (?, '{}', '[]')",
                [(i,) for i in numbers],
            )
            held = [i for i in numbers if i <= runs]
            connection.executemany(
                TAIL,
                [(i, k, k - 1, k - 1, now, b"x" * 40) for i in held for k in range(1, rows + 1)],
            )
            for i in held:
                tail_summary.summarise(connection, i)
            connection.executemany(INCIDENT, [(i, BODY) for i in numbers if i <= incidents])


def timed(name: str, look: Callable[[], int], wanted: int, target: float) -> None:
    """Print the first time and the median of 20 more, in milliseconds, with CPU time."""
    spent, used = [], []
    for _ in range(21):
        began, cpu = time.perf_counter(), time.process_time()
        assert look() == wanted
        spent.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
    middle = statistics.median(spent[1:]) * 1e3
    missed = "" if middle <= target else "  missed"
    print(
        f"{name}: first {spent[0] * 1e3:.1f} ms, then {middle:.2f} ms "
        f"(CPU of the process {statistics.median(used[1:]) * 1e3:.2f} ms), "
        f"target {target:.0f} ms{missed}"
    )


def looks(store: Store, incidents: int, now: float) -> None:
    chunks = DueChunks()

    def due() -> int:
        with store._database.read() as connection:
            return len(chunks.look(connection, now, EVERYTHING)[0])

    timed("a look for due chunks", due, 0, 20)
    timed("a look at open incidents", lambda: len(store.incidents.marks()), incidents, 20)
    timed("a look for waiting alerts", lambda: int(store.incidents.work(now).outbox), 0, 20)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sessions(url: str) -> dict[int, float]:
    """Return the CPU time of each session of the services, if the server is on this machine."""
    if not url.startswith("postgres"):
        return {}
    with psycopg.connect(url) as connection:
        pids = connection.execute("select pid from pg_stat_activity where application_name = 'snc'")
        return {pid: cpu_seconds(pid) for (pid,) in pids if os.path.exists(f"/proc/{pid}")}


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def idle(url: str, replicas: int, seconds: float) -> None:
    """Print the CPU time of idle services in percent of a core."""
    started = []
    environment = {**os.environ, "SNC_ACCESS_LOG": "0", "SNC_SILENT_SECONDS": "100000"}
    try:
        for _ in range(replicas):
            port = free_port(0)
            command = [sys.executable, "-m", "snc_service.cli", "serve", f"--port={port}"]
            started.append(subprocess.Popen([*command, f"--store={url}"], env=environment))
            while not is_ready(port):
                assert started[-1].poll() is None
                time.sleep(0.1)
        time.sleep(10)  # until the pauses are long
        before, server = [cpu_seconds(each.pid) for each in started], sessions(url)
        time.sleep(seconds)
        after, last = [cpu_seconds(each.pid) for each in started], sessions(url)
        for a, b in zip(before, after, strict=True):
            part = 100 * (b - a) / seconds
            print(f"an idle service: {part:.2f} % of a core, target 2 %{'  missed' * (part > 2)}")
        if last:
            grown = sum(last[pid] - server.get(pid, 0.0) for pid in last)
            print(f"their sessions of PostgreSQL: {100 * grown / seconds:.2f} % of a core together")
    finally:
        for each in started:
            each.terminate()
        for each in started:
            each.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="the URL of an empty store")
    parser.add_argument("--runs", type=int, default=1_000, help="with rows in the tail")
    parser.add_argument("--rows", type=int, default=1_000, help="in the tail of each run")
    parser.add_argument("--incidents", type=int, default=4_000, help="open, one per run")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--idle", type=float, default=0.0, help="seconds to measure idle services")
    given = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; "
        f"{given.runs} runs x {given.rows} rows in the tail, {given.incidents} open incidents"
    )
    now = time.time()
    with closing(open_store(given.store)) as store:
        fill(store, given.runs, given.rows, given.incidents, now)
        if given.store.startswith("postgres"):
            with psycopg.connect(given.store, autocommit=True) as connection:
                connection.execute("vacuum analyze")  # as autovacuum does within a minute
        looks(store, given.incidents, now)
    if given.idle:
        idle(given.store, given.replicas, given.idle)


if __name__ == "__main__":
    main()
