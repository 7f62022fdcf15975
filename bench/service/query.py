"""Queries against a store that grows: latency idle and under ingest, memory, start after kill -9.

    OMP_NUM_THREADS=1 python bench/service/query.py [--values 1e6 1e7 1e8]
        [--engines sqlite postgres]

Every run is made by the store's own ingest and fold: random walks of float32 with full mantissas,
5 metrics, 1000 layers; the threshold stands still, as a policy leaves it. Beside them two long runs
of 16 layers: 1e5 and 1e6 steps of sigma. PostgreSQL gets no run of 1e8. All runs stay in one store,
so that the last figures are those of the largest.

Three figures per query, p50 / p99 in ms, everything warm: the store called in this process; HTTP
to a real `snc serve`, JSON included, nothing compressed or cached; and the same while 8 writers
send 200 batches a second (100 layers x 1 step x 5 metrics), each durable, all rules on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from store import METRICS, NOW, Walk, calibrate, started, table

from snc_service.api.history.heatmap import layers_with, of_metric
from snc_service.store import Store, open_store
from snc_service.store.types import Submission, Window
from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, Batch, encode

sys.path.append(str(Path(__file__).resolve().parents[1]))

from ingest import serving, stores

LAYERS = 1_000
LONG = {"long5": 10**5, "long6": 10**6}
WRITERS, RATE = 8, 25.0  # batches per second and writer
SECONDS, LEAST, MOST = 0.6, 10, 200  # of each query: so long, but that many times
MOST_EXPORTED = {"parquet": 1e7, "csv": 1e6}  # values: what takes a few seconds
START_TARGET_S, MEMORY_TARGET_MB = 2.0, 300


class Query(NamedTuple):
    """One question, to the store and over HTTP, and the p50 that it is to have, in ms."""

    name: str
    ask: Callable[[Store], Any]
    path: str
    params: dict[str, Any]
    target: float | None = None


class Job(Walk):
    """A walk whose threshold stands still."""

    def batch(self, num_steps: int) -> Batch:
        one = super().batch(num_steps)
        one.values[METRICS.index("threshold")] = 1.5
        return one


def fill(store: Store, run: str, num_layers: int, num_steps: int, at_once: int, most: int) -> int:
    """Ingest and fold a run of the first ``most`` metrics; return its values."""
    layers = table(num_layers)
    started(store, run, layers)
    job, since = Job("w", layers), time.perf_counter()
    while job.step < num_steps:
        whole = job.batch(at_once)
        one = Batch(
            whole.writer, whole.seq, whole.layers, whole.steps, whole.metrics[:most],
            whole.values[:most], whole.scalars, whole.scalar_values,
        )  # fmt: skip
        (outcome,) = store.batches.ingest([Submission(run, one, one.seq, NOW)])
        assert outcome.error is None
        if job.seq % 20 == 0:
            store.fold(1, now=NOW)
    while store.fold(60, now=NOW + 3_600):
        pass
    for _ in range(20):  # each gives 16 MB back that the tail had taken
        store.fold(0, now=NOW + 3_600)
    values, took = num_layers * job.step * most, time.perf_counter() - since
    print(f"made {run}: {num_layers} layers x {job.step} steps x {most} metrics = {values:.1e} "
          f"values, {values / took / 1e6:.1f} M/s with folding")  # fmt: skip
    return values


def questions(run: str, num_steps: int, runs: list[str]) -> list[Query]:
    last = Window(from_step=num_steps - 1_000)
    eight = [f"l{i * LAYERS // 8}" for i in range(8)]
    path, ratio = f"/runs/{run}", {"below": "threshold"}
    big = num_steps * LAYERS * len(METRICS) >= 10**8
    return [
        Query(
            "history, 1 layer, 1000 points",
            lambda s: s.histories.of_layers(run, "sigma", ["l3"], Window()),
            f"{path}/layers/l3/history",
            {},
        ),
        Query(
            "history, 1 layer, last 1000 steps",
            lambda s: s.histories.of_layers(run, "sigma", ["l3"], last),
            f"{path}/layers/l3/history",
            {"from_step": max(0, last.from_step)},
        ),
        Query(
            "history, 8 layers, 1000 points",
            lambda s: s.histories.of_layers(run, "sigma", eight, Window()),
            f"{path}/history",
            {"layer": eight},
        ),
        Query(
            "scalar history, 1000 points",
            lambda s: s.histories.of_scalar(run, "loss", Window()),
            f"{path}/scalars/loss/history",
            {},
        ),
        Query(
            "heatmap, 1000 x 500",
            lambda s: of_metric(s, run, "sigma", layers_with(s, run, "sigma"), Window(points=500)),
            f"{path}/heatmap",
            {"layers": LAYERS},
            100 if big else None,
        ),
        Query(
            "heatmap of ratio, 1000 x 500",
            lambda s: of_metric(s, run, "ratio", layers_with(s, run, "sigma"), Window(points=500)),
            f"{path}/heatmap",
            {"layers": LAYERS, "metric": "ratio"},
        ),
        Query(
            "worst 10 by ratio, whole run",
            lambda s: s.histories.worst(run, "sigma", Window(), 10, **ratio),
            f"{path}/worst",
            {},
        ),
        Query(
            "newest values of all layers",
            lambda s: s.histories.latest(run),
            f"{path}/layers",
            {"limit": 100},
        ),
        Query(
            f"one layer over {len(runs)} runs, 200 points",
            lambda s: [s.histories.of_layers(r, "sigma", ["l3"], Window(points=200)) for r in runs],
            "/compare",
            {"run": runs, "layer": "l3"},
        ),
        Query(
            "list of runs",
            lambda s: s.runs.page(project=None, state=None, limit=100, after=None),
            "/runs",
            {},
        ),
    ]


def long_questions() -> list[Query]:
    return [
        Query(
            f"history, 1 layer, {steps:.0e} steps, 1000 points",
            lambda s, run=run: s.histories.of_layers(run, "sigma", ["l3"], Window()),
            f"/runs/{run}/layers/l3/history",
            {},
            5 if steps == 10**5 else 10,
        )
        for run, steps in LONG.items()
    ]


def timed(ask: Callable[[], Any]) -> list[float]:
    """Return how long asking took each time, in ms, the first time left out."""
    ask()
    times: list[float] = []
    while len(times) < LEAST or (sum(times) < SECONDS * 1e3 and len(times) < MOST):
        since = time.perf_counter()
        ask()
        times.append((time.perf_counter() - since) * 1e3)
    return times


def shown(times: list[float]) -> str:
    return f"{np.median(times):.1f} / {np.quantile(times, 0.99):.1f}"


def over_http(url: str, asked: list[Query]) -> dict[str, list[float]]:
    headers = {"Accept-Encoding": "identity"}
    with httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60) as client:
        return {
            one.name: timed(
                lambda one=one: client.get(one.path, params=one.params).raise_for_status()
            )
            for one in asked
        }


def write(url: str, stop: Any, sent: Any) -> None:
    """Send small batches at a fixed rate from a thread per writer, until told to stop."""
    layers, done = table(100), []

    def one_writer(number: int) -> None:
        run, walk = f"w{os.getpid()}-{number}", Walk("w", layers)
        with httpx.Client(base_url=f"{url}/api/v1", timeout=60) as client:
            client.post("/runs", json={"run": run}).raise_for_status()
            client.put(f"/runs/{run}/layer-tables/{layers.hash}", content=layers.body,
                       headers={"Content-Type": JSON_MEDIA_TYPE}).raise_for_status()  # fmt: skip
            begin = time.perf_counter() + number / RATE / WRITERS
            while not stop.is_set():
                time.sleep(max(0.0, begin + walk.seq / RATE - time.perf_counter()))
                told = client.post(f"/runs/{run}/batches", content=encode(walk.batch(1)),
                                   headers={"Content-Type": MEDIA_TYPE})  # fmt: skip
                told.raise_for_status()
                done.append(1)

    threads = [threading.Thread(target=one_writer, args=(n,)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent.value = len(done)


@contextmanager
def under_ingest(url: str) -> Iterator[None]:
    stop, sent = multiprocessing.Event(), multiprocessing.Value("q", 0)
    writer = multiprocessing.Process(target=write, args=(url, stop, sent))
    since = time.perf_counter()
    writer.start()
    try:
        time.sleep(1)
        yield
    finally:
        took = time.perf_counter() - since
        stop.set()
        writer.join()
    print(f"  under ingest: {sent.value / took:.0f} batches a second were acknowledged meanwhile")


def measured(url: str, store: Store, asked: list[Query]) -> None:
    alone = {one.name: timed(lambda one=one: one.ask(store)) for one in asked}
    idle = over_http(url, asked)
    with under_ingest(url):
        busy = over_http(url, asked)
    print(f"  {'p50 / p99 in ms':<44}{'store':>16}{'HTTP, idle':>18}{'HTTP, ingest':>18}  target")
    for one in asked:
        row = "".join(f"{shown(times[one.name]):>{width}}"
                      for times, width in ((alone, 16), (idle, 18), (busy, 18)))  # fmt: skip
        print(f"  {one.name:<44}{row}  {verdict(one, idle[one.name], busy[one.name])}")


def verdict(one: Query, idle: list[float], busy: list[float]) -> str:
    if one.target is None:
        return ""
    met = max(np.median(idle), np.median(busy)) <= one.target
    return f"<= {one.target:g}: {'met' if met else 'missed'}"


def exported(url: str, run: str, values: float) -> None:
    """Export a run whole, as a client that does nothing with it; CSV only of a small one."""
    for form in ("parquet", "csv"):
        if values > MOST_EXPORTED[form]:
            continue
        since, size = time.perf_counter(), 0
        path, params = f"{url}/api/v1/runs/{run}/export", {"format": form}
        headers = {"Accept-Encoding": "identity"}
        with httpx.stream("GET", path, params=params, headers=headers, timeout=60) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                size += len(chunk)
        took = time.perf_counter() - since
        print(f"  export as {form}: {values / took / 1e6:.2f} M values/s, {size / values:.2f} "
              "bytes per value")  # fmt: skip


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process now and at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(status.split(f"{key}:")[1].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def killed_and_started(store_url: str, folder: Path) -> float:
    """Kill a service that ingests with -9; return how long the next one takes to be ready."""
    with serving(store_url, folder / "log") as (url, pid):
        stop, sent = multiprocessing.Event(), multiprocessing.Value("q", 0)
        writer = multiprocessing.Process(target=write, args=(url, stop, sent), daemon=True)
        writer.start()
        time.sleep(2)
        writer.terminate()
        writer.join()
        os.kill(pid, signal.SIGKILL)
    since = time.perf_counter()
    with serving(store_url, folder / "log"):
        return time.perf_counter() - since


def one_engine(engine: str, sizes: list[float], folder: Path) -> float:
    """Measure one engine at growing sizes; return its bytes per value."""
    with stores(engine, folder) as store_url:
        stored, asked = 0, []
        with closing(open_store(store_url)) as store:
            for run, steps in LONG.items():
                stored += fill(store, run, 16, steps, 1_000, 1)
        for number, size in enumerate(sizes):
            run, steps = (
                f"r{size:.0e}".replace("+", ""),
                max(100, round(size / LAYERS / len(METRICS))),
            )
            with closing(open_store(store_url)) as store:
                stored += fill(store, run, LAYERS, steps, 100, len(METRICS))
                per_value = store.size_bytes() / stored
                print(f"  {stored:.1e} values in the store, {per_value:.2f} bytes per value")
                asked = questions(run, steps, [f"r{s:.0e}".replace("+", "")
                                               for s in sizes[: number + 1]])  # fmt: skip
                if number + 1 == len(sizes):
                    asked += long_questions()
                with serving(store_url, folder / "log") as (url, pid):
                    measured(url, store, asked)
                    exported(url, run, steps * LAYERS * len(METRICS))
                    now, most = memory_mb(pid)
            met = "met" if most <= MEMORY_TARGET_MB else "missed"
            print(f"  service: {now:.0f} MB resident, {most:.0f} MB at most"
                  f"  target <= {MEMORY_TARGET_MB}: {met}")  # fmt: skip
        took = killed_and_started(store_url, folder)
        met = "met" if took <= START_TARGET_S else "missed"
        print(f"  start after kill -9 in the middle of ingest: {took:.2f} s"
              f"  target <= {START_TARGET_S:g}: {met}")  # fmt: skip
        return per_value


def on_paper(per_value: float) -> None:
    """Say what 1e12 values are, from what was measured and from the layout alone."""
    values, per_tile, shards = 1e12, 16 * 1_024, 32
    rows = values / per_tile * (1 + 1 / 32 + 1 / 1_024)
    deep, now = np.log(rows / shards) / np.log(200), np.log(1e8 / per_tile) / np.log(200)
    print(
        "on paper, nothing of it was run: 1e12 values on Citus, sharded by run\n"
        f"  {values / per_tile / 1e6:.0f} M tiles of 16 layers x 1024 steps, {rows / 1e6:.0f} M "
        f"rows with rollups, {values * per_value / 1e12:.1f} TB at the bytes per value above: "
        f"{values / 1e8:.0f} runs of 1e8\n"
        "  a query about a run asks one node and reads the rows of that run alone, as above; the "
        f"key's tree is\n  {deep:.1f} levels deep on each of {shards} shards instead of {now:.1f} "
        "with one run of 1e8; ingest and folding\n  grow with the nodes, those of one run with "
        "its node; lists and counts over runs ask every node"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--dir", type=Path, default=None, help="where the stores are made")
    arguments = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    per_value = 0.0
    for engine in arguments.engines:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
            calibrate(Path(name))
            print(f"{engine}:")
            small = engine != "sqlite"
            sizes = [size for size in arguments.values if not small or size < 1e8]
            per_value = one_engine(engine, sizes, Path(name))
    on_paper(per_value)


if __name__ == "__main__":
    main()
