"""Time to render /metrics when every run has changed, beside prometheus-client's own renderer.

    OMP_NUM_THREADS=1 python bench/exposition.py [--rounds 15]

Four series a layer, in a real SQLite store; values change between rounds, names do not. The
library renders the same series from gauges that exist already: setting them is not counted.
Medians, and the ratio within one run.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from snc_service.detect.rules import advance
from snc_service.exposition import Exposition
from snc_service.exposition.families import LAYER_FAMILIES
from snc_service.store import open_store
from snc_service.store.protocol import Store, Submission
from snc_service.wire import Batch, LayerSpec, LayerTable, encode

METRICS = ("sigma", "sigma_upper", "threshold")


def feed(store: Store, num_layers: int) -> Callable[[], None]:
    """Return a function that reports one more row of random values."""
    rng = np.random.default_rng(0)
    now = time.time()
    store.create_run("r", name="r", project="p", config={}, tags=(), policy=None, now=now)
    table = LayerTable(tuple(LayerSpec(f"blocks.{i}.attn.q.weight") for i in range(num_layers)))
    store.put_layer_table("r", table)
    seq = 0

    def report() -> None:
        nonlocal seq
        values = rng.random((len(METRICS), 1, num_layers)).astype(np.float32)
        batch = Batch("w", seq, table.hash, (seq,), METRICS, values)
        submission = Submission("r", batch, zlib.crc32(encode(batch)), time.time())
        (outcome,) = store.ingest([submission], advance)
        assert outcome.error is None
        seq += 1

    return report


def library(num_layers: int) -> Callable[[], bytes]:
    """Return prometheus-client's renderer over the same series."""
    registry = CollectorRegistry()
    for family in LAYER_FAMILIES:
        gauge = Gauge(family.name, family.help, family.labels, registry=registry)
        for i in range(num_layers):
            gauge.labels("r", f"blocks.{i}.attn.q.weight").set(0.1 * i)
    return lambda: generate_latest(registry)


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"Python {platform.python_version()}, {platform.machine()}, {rounds} rounds")
    print("series   store read ms   render ms   again ms   library ms   ratio")
    for num_layers in (2_500, 25_000):
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(f"sqlite:///{Path(folder) / 'snc.db'}")
            report, reference = feed(store, num_layers), library(num_layers)
            exposition = Exposition(store, max_series=1_000_000)
            render = partial(exposition.metrics, ["layers"])
            report()
            render()
            read, changed, again, other = [], [], [], []
            for _ in range(rounds):
                report()
                read.append(milliseconds(partial(store.latest, "r")))
                changed.append(milliseconds(render))
                again.append(milliseconds(render))
                other.append(milliseconds(reference))
            store.close()
        ours = median(changed) - median(read)
        print(
            f"{4 * num_layers:6}   {median(read):13.2f}   {ours:9.2f}   {median(again):8.2f}   "
            f"{median(other):10.1f}   {median(other) / ours:5.0f}x"
        )


if __name__ == "__main__":
    main()
