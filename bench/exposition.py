"""Time to render /metrics when every run has changed, beside prometheus-client's own renderer.

    OMP_NUM_THREADS=1 python bench/exposition.py [--rounds 15]

Four series a layer, in a real SQLite store; every value changes between rounds, names do not. What
the store takes to read is shown by itself and not counted. The library renders the same series from
gauges that exist already: setting them is not counted. Medians of processor time, which other work
on the machine hardly changes, and the ratio within one run.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from snc_service.detect.rules import RunRules
from snc_service.exposition import Exposition
from snc_service.exposition.families import LAYER_FAMILIES
from snc_service.exposition.layers import LayerValues
from snc_service.store import Store, open_store
from snc_service.store.types import Submission
from snc_service.wire import Batch, LayerSpec, LayerTable, encode

METRICS = ("sigma", "sigma_upper", "threshold")


class Case(NamedTuple):
    """So many runs of so many layers; at most so long, and at least so much faster."""

    num_runs: int
    num_layers: int
    most_ms: float | None
    least_ratio: float | None


CASES = (
    Case(1, 2_500, 2.0, 60.0),
    Case(100, 25, None, None),
    Case(1, 25_000, 50.0, 20.0),
)


def names_of(case: Case) -> tuple[list[str], list[str]]:
    runs = [f"r{i}" for i in range(case.num_runs)]
    return runs, [f"blocks.{i}.attn.q.weight" for i in range(case.num_layers)]


def feed(store: Store, case: Case) -> Callable[[], None]:
    """Return a function by which every run reports one more row of random values."""
    rng = np.random.default_rng(0)
    now = time.time()
    runs, layers = names_of(case)
    table = LayerTable(tuple(LayerSpec(layer) for layer in layers))
    for run in runs:
        store.runs.create(run, name=run, project="p", config={}, tags=(), policy=None, now=now)
        store.batches.put_layer_table(run, table)
    seq = 0

    def report() -> None:
        nonlocal seq
        items = []
        for run in runs:
            values = rng.random((len(METRICS), 1, len(layers))).astype(np.float32)
            batch = Batch("w", seq, table.hash, (seq,), METRICS, values)
            items.append(Submission(run, batch, zlib.crc32(encode(batch)), time.time()))
        assert all(outcome.error is None for outcome in store.batches.ingest(items))
        seq += 1

    return report


def library(case: Case, store: Store) -> Callable[[], bytes]:
    """Return prometheus-client's renderer over the same series and the same values."""
    registry = CollectorRegistry()
    runs, layers = names_of(case)
    gauges = {
        family: Gauge(family.name, family.help, family.labels, registry=registry)
        for family in LAYER_FAMILIES
    }
    for run in runs:
        values = LayerValues(store.histories.latest(run)).values
        for family, gauge in gauges.items():
            for layer, value in zip(layers, values[family].tolist(), strict=True):
                gauge.labels(run, layer).set(value)
    return lambda: generate_latest(registry)


def milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def compared(case: Case, rounds: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'snc.db'}")
        store.batches.judge_with(RunRules)
        report = feed(store, case)
        render = partial(Exposition(store, max_series=1_000_000).metrics, ["layers"])
        report()
        render()
        reference = library(case, store)
        read, changed, again, other = [], [], [], []
        for _ in range(rounds):
            report()
            read.append(milliseconds(partial(read_all, store, names_of(case)[0])))
            changed.append(milliseconds(render))
            again.append(milliseconds(render))
            other.append(milliseconds(reference))
        store.close()
    ours = median(changed) - median(read)
    ratio = median(other) / ours
    row = (
        f"{4 * case.num_runs * case.num_layers:7} {case.num_runs:5} {median(read):9.2f} "
        f"{ours:10.2f} {median(again):9.2f} {median(other):11.1f} {ratio:6.0f}x"
    )
    if case.most_ms is None or case.least_ratio is None:
        return f"{row}   no target"
    met = ours <= case.most_ms and ratio >= case.least_ratio
    target = f"<= {case.most_ms:g} ms, >= {case.least_ratio:g}x"
    return f"{row}   {target}: {'met' if met else 'missed'}"


def read_all(store: Store, runs: list[str]) -> None:
    """Read what the exposition reads when every run has changed."""
    for state in ("active", "silent", "finished", "failed"):
        store.runs.page(project=None, state=state, limit=500, after=None)
    store.events.counts()
    for run in runs:
        store.histories.latest(run)
        store.histories.latest_scalars(run, 0, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"OMP_NUM_THREADS=1 python bench/exposition.py --rounds {rounds}")
    print(
        f"Python {platform.python_version()}, prometheus-client {version('prometheus-client')}, "
        f"NumPy {np.__version__}, {platform.machine()}, {platform.system()}"
    )
    print("medians of processor time, ms")
    print(" series  runs  store read    render    again     library   ratio   target")
    for case in CASES:
        print(compared(case, rounds), flush=True)


if __name__ == "__main__":
    main()
