"""The store alone, in one process: ingest, folding, bytes per value, latency of the queries.

    python bench/service/store.py [--values 1e6 1e7] [--dir DIR]

Data: random walks (2e-3 per step) of float32 with full mantissas, 5 metrics, 1000 layers unless
said otherwise: harsher than real training. Bytes per value are also measured on data as a training
reports it: sigma and the Frobenius norm walk, sigma with the estimator's noise of 1e-5, the stable
rank follows from both, the threshold is what it was set to, the gradient norm is noise of 30 %
around a slow walk. Every commit is synced. The calibration lines say how fast this disk syncs and
this memory copies at the moment; read the figures against them.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snc_service.store import Store, open_store
from snc_service.store.types import Event, RunRows, Submission, Window
from snc_service.wire import Batch, LayerSpec, LayerTable

BYTES_PER_VALUE = 2.3
METRICS = ("sigma", "threshold", "frobenius", "stable_rank", "grad_norm")
NOW = 1_763_800_000.0


class Quiet:
    """Rules that say nothing and remember nothing."""

    num_bytes = 0

    def __init__(self, state: bytes | None) -> None:
        pass

    def advance(self, rows: RunRows) -> list[Event]:
        return []

    @staticmethod
    def advance_together(items: Sequence[tuple[object, RunRows]]) -> list[list[Event]]:
        return [[] for _ in items]

    def dump(self) -> bytes:
        return b""

    pulse = dump


def table(num_layers: int) -> LayerTable:
    return LayerTable(tuple(LayerSpec(f"l{i}", "linear", (64, 64)) for i in range(num_layers)))


class Walk:
    """Batches of one writer, each continuing the walk of the last."""

    def __init__(self, writer: str, layers: LayerTable) -> None:
        self.writer, self.layers, self.seq, self.step = writer, layers, 0, 0
        self.rng = np.random.default_rng(len(layers.layers))
        self.at = np.ones((len(METRICS), 1, len(layers.layers)), np.float32)

    def values(self, num_steps: int) -> np.ndarray:
        """Return the next values [M, S, L]."""
        shape = (len(METRICS), num_steps, self.at.shape[2])
        moves = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(2e-3)
        values = self.at + np.cumsum(moves, axis=1, dtype=np.float32)
        self.at = values[:, -1:]
        return values

    def batch(self, num_steps: int) -> Batch:
        values = self.values(num_steps)
        steps = tuple(range(self.step, self.step + num_steps))
        loss = np.ones((1, num_steps), np.float32)
        one = Batch(
            self.writer, self.seq, self.layers.hash, steps, METRICS, values, ("loss",), loss
        )
        self.seq, self.step = self.seq + 1, self.step + num_steps
        return one


class Training(Walk):
    """The same as a training would report it."""

    def values(self, num_steps: int) -> np.ndarray:
        walk = super().values(num_steps)
        noise = self.rng.standard_normal((2, *walk.shape[1:]))
        sigma = walk[0] * (1 + 1e-5 * noise[0]).astype(np.float32)
        frobenius = 8 * (1 + (walk[2] - 1) / 4)
        rank = (frobenius.astype(np.float64) / sigma) ** 2
        threshold = np.full_like(sigma, 3) + np.arange(sigma.shape[1], dtype=np.float32) / 7
        gradient = walk[4] * np.exp(0.3 * noise[1])
        return np.array([sigma, threshold, frobenius, rank, gradient], np.float32)


def started(store: Store, run: str, layers: LayerTable) -> None:
    store.batches.judge_with(Quiet)
    store.runs.create(run, name=run, project="p", config={}, tags=(), policy=None, now=NOW)
    store.batches.put_layer_table(run, layers)


def calibrate(folder: Path) -> None:
    block = np.ones(2**24, np.float32)
    start = time.perf_counter()
    for _ in range(5):
        block.copy()
    copied = 5 * block.nbytes / (time.perf_counter() - start) / 1e9
    times = []
    with open(folder / "sync", "wb") as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    print(f"calibration: memcpy {copied:.1f} GB/s, fdatasync p50 {np.median(times) * 1e3:.2f} ms")


def big_batches(
    store: Store, run: str, num_layers: int, num_values: float, kind: type[Walk] = Walk
) -> int:
    """Ingest and fold a run of batches of 100 steps; return its steps."""
    layers = table(num_layers)
    started(store, run, layers)
    walk, per_step = kind("w", layers), len(METRICS) * num_layers
    num_steps = max(100, round(num_values / per_step / 100) * 100)
    ingest_s = fold_s = longest_s = 0.0
    while walk.step < num_steps:
        one = walk.batch(100)
        start = time.perf_counter()
        (outcome,) = store.batches.ingest([Submission(run, one, one.seq, NOW)])
        ingest_s += time.perf_counter() - start
        assert outcome.error is None
        start = time.perf_counter()
        store.fold(0.2, now=NOW)
        took = time.perf_counter() - start
        fold_s, longest_s = fold_s + took, max(longest_s, took)
    start = time.perf_counter()
    while store.fold(60, now=NOW + 3_600):
        pass
    for _ in range(20):  # as a service does that idles: what is free goes back, 16 MB at a time
        store.fold(0, now=NOW + 3_600)
    fold_s += time.perf_counter() - start
    values = num_steps * per_step
    print(
        f"big batches: {values:.1e} values ({num_layers} layers x {num_steps} steps): ingest "
        f"{values / ingest_s / 1e6:.1f} M/s, fold {values / fold_s / 1e6:.1f} M/s (longest call "
        f"{longest_s * 1e3:.0f} ms), both {values / (ingest_s + fold_s) / 1e6:.1f} M/s"
    )
    return num_steps


def bytes_per_value(path: Path, num_values: float) -> float:
    """Print the size of a closed store's file as it is: no vacuum, free pages included."""
    found = path.stat().st_size / num_values
    print(f"file: {found:.2f} bytes per value")
    return found


def as_trained(path: Path, num_values: float) -> None:
    """Print what data of a training take, against the target."""
    store = open_store(f"sqlite:///{path}")
    print("as a training reports it, ", end="")
    num_steps = big_batches(store, "trained", 1_000, num_values, Training)
    store.close()
    found = bytes_per_value(path, num_steps * 1_000 * len(METRICS))
    print(
        f"  target <= {BYTES_PER_VALUE} bytes per value: "
        f"{'met' if found <= BYTES_PER_VALUE else 'missed'}"
    )


def wide(path: Path, budget_s: float) -> None:
    """Fold 50,000 layers, and print how long one call takes: others get their turn after it."""
    store = open_store(f"sqlite:///{path}")
    layers = table(50_000)
    started(store, "wide", layers)
    walk = Walk("w", layers)
    for _ in range(140):
        one = walk.batch(1)
        store.batches.ingest([Submission("wide", one, one.seq, NOW)])
    calls, num_values = [], 0
    while True:
        start = time.perf_counter()
        folded = store.fold(budget_s, now=NOW)
        if not folded:
            break
        calls.append(time.perf_counter() - start)
        num_values += folded
    store.close()
    print(
        f"50,000 layers x 140 steps, calls of {budget_s:g} s: {len(calls)} calls, longest "
        f"{max(calls):.2f} s, {num_values / sum(calls) / 1e6:.1f} M values/s"
    )


def small_batches(store: Store, num_writers: int, seconds: float) -> None:
    """1 step x 100 layers x 5 metrics per batch, committed in groups of all that wait."""
    layers = table(100)
    walks = []
    for i in range(num_writers):
        started(store, f"small{num_writers}-{i}", layers)
        walks.append(Walk("w", layers))
    waiting: list[tuple[Submission, threading.Event, float]] = []
    condition, done = threading.Condition(), threading.Event()
    delays: list[float] = []

    def send(i: int) -> None:
        while not done.is_set():
            one = walks[i].batch(1)
            acked = threading.Event()
            item = Submission(f"small{num_writers}-{i}", one, one.seq, NOW)
            with condition:
                waiting.append((item, acked, time.perf_counter()))
                condition.notify()
            acked.wait()

    senders = [threading.Thread(target=send, args=(i,)) for i in range(num_writers)]
    for sender in senders:
        sender.start()
    start, groups = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or any(s.is_alive() for s in senders):
        if time.perf_counter() - start >= seconds:
            done.set()
        with condition:
            condition.wait_for(lambda: bool(waiting), timeout=0.1)
            group, waiting[:] = waiting[:64], waiting[64:]
        if group:
            store.batches.ingest([item for item, _, _ in group])
            groups += 1
            for _, acked, since in group:
                delays.append(time.perf_counter() - since)
                acked.set()
    took = time.perf_counter() - start
    print(
        f"small batches, {num_writers} writers in threads of this process: "
        f"{len(delays) / took:.0f} batches/s "
        f"({len(delays) / groups:.1f} per commit), p50 {np.quantile(delays, 0.5) * 1e3:.1f} ms, "
        f"p99 {np.quantile(delays, 0.99) * 1e3:.1f} ms"
    )


def queries(store: Store, run: str, num_layers: int, num_steps: int) -> None:
    some = [f"l{i * num_layers // 8}" for i in range(8)]
    last = Window(from_step=num_steps - 1_000)
    asked = {
        "history, 1 layer, 1000 points": lambda: store.histories.of_layers(
            run, "sigma", ["l3"], Window()
        ),
        "history, 8 layers, 1000 points": lambda: store.histories.of_layers(
            run, "sigma", some, Window()
        ),
        "history, 1 layer, last 1000": lambda: store.histories.of_layers(
            run, "sigma", ["l3"], last
        ),
        "scalar history, 1000 points": lambda: store.histories.of_scalar(run, "loss", Window()),
        "heatmap, 1000 x 500": lambda: store.histories.of_layers(
            run, "sigma", [f"l{i}" for i in range(num_layers)], Window(points=500)
        ),
        "latest": lambda: store.histories.latest(run),
    }
    for name, ask in asked.items():
        times = []
        for _ in range(15):
            start = time.perf_counter()
            ask()
            times.append((time.perf_counter() - start) * 1e3)
        print(f"  {name}: p50 {np.median(times):.1f} ms, worst {max(times):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--dir", type=Path, default=None, help="where the stores are made")
    arguments = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = Path(name)
        calibrate(folder)
        cases = [(v, 1_000) for v in arguments.values] + [(arguments.values[-1] * 1.6, 16)]
        for number, (num_values, num_layers) in enumerate(cases):
            path = folder / f"{number}.db"
            store = open_store(f"sqlite:///{path}")
            num_steps = big_batches(store, "big", num_layers, num_values)
            queries(store, "big", num_layers, num_steps)
            store.close()
            bytes_per_value(path, num_steps * num_layers * len(METRICS))
        as_trained(folder / "trained.db", arguments.values[-1])
        wide(folder / "wide.db", 0.25)
        store = open_store(f"sqlite:///{folder}/small.db")
        for num_writers in (8, 100):
            small_batches(store, num_writers, 5.0)
        store.close()


if __name__ == "__main__":
    main()
