"""What detection costs: `advance` per row, and a batch in the store with rules and without.

    OMP_NUM_THREADS=1 python bench/detection/cost.py [--repeats N]

Rows are a healthy training of random walks with all signals the callback reports. The state is read
from bytes and written to bytes with every batch, as in the service.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from snc_service.detect.rules import RunRules
from snc_service.store import open_store
from snc_service.store.types import Event, RunRows, Submission
from snc_service.wire import Batch, LayerTable

METRICS = ("sigma", "frobenius", "grad_norm", "update_norm", "threshold", "scale")
SCALARS = ("loss", "lr", "grad_norm")
TARGET_US = 50.0
TARGET_SHARE = 0.80


def batches(num_layers: int, rows: int, count: int) -> list[Batch]:
    """Return ``count`` batches of ``rows`` rows of a run that nothing ails."""
    rng = np.random.default_rng(0)
    table = LayerTable.of_names([f"blocks.{i}.weight" for i in range(num_layers)]).hash
    log_sigma = np.zeros(num_layers)
    made = []
    for seq in range(count):
        walk = log_sigma + rng.normal(0, 0.002, (rows, num_layers)).cumsum(axis=0)
        log_sigma = walk[-1]
        sigma = np.exp(walk)
        columns = {
            "sigma": sigma,
            "frobenius": 3 * sigma,
            "grad_norm": np.exp(rng.normal(-2, 0.2, sigma.shape)),
            "update_norm": 0.003 * sigma,
            "threshold": np.full(sigma.shape, 30.0),
            "scale": np.ones(sigma.shape),
        }
        scalars = [2 + 0.02 * rng.standard_normal(rows), np.full(rows, 0.001)]
        scalars.append(np.exp(rng.normal(0, 0.1, rows)))
        steps = tuple(range(seq * rows, (seq + 1) * rows))
        values = np.stack([columns[name] for name in METRICS]).astype(np.float32)
        made.append(
            Batch(
                "w",
                seq,
                table,
                steps,
                METRICS,
                values,
                SCALARS,
                np.stack(scalars).astype(np.float32),
            )
        )
    return made


class Quiet(RunRules):
    """Rules that say nothing and remember nothing."""

    def advance(self, rows: RunRows) -> list[Event]:
        return []


def cost_per_row(num_layers: int, rows: int, repeats: int) -> float:
    """Return the median processor seconds that `advance` takes for one row."""
    names = tuple(f"blocks.{i}.weight" for i in range(num_layers))
    rules, took = RunRules(None), []
    for batch in batches(num_layers, rows, repeats + 5):
        begin = time.thread_time()
        rules.advance(RunRows("r", batch, names, 0, batch.seq == 0))
        took.append(time.thread_time() - begin)
    return statistics.median(took[5:]) / rows


def ingest(num_layers: int, rows: int, repeats: int) -> tuple[float, float]:
    """Return rows a second into an embedded store with rules and without.

    Batches go into one store and the other in turns, so that whatever else the machine does slows
    both down; from the medians of single batches.
    """

    table = LayerTable.of_names([f"blocks.{i}.weight" for i in range(num_layers)])
    sides: list[tuple[type[RunRules], list[float]]] = [(RunRules, []), (Quiet, [])]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = [open_store(f"sqlite:///{Path(folder) / f'{side}.db'}") for side in range(2)]
        for store, (detection, _) in zip(stores, sides, strict=True):
            store.batches.judge_with(detection)
            stack.callback(store.close)
            store.runs.create("r", name="r", project="p", config={}, tags=[], policy=None, now=1.0)
            store.batches.put_layer_table("r", table)
        for batch in batches(num_layers, rows, repeats):
            for store, (_, took) in zip(stores, sides, strict=True):
                begin = time.perf_counter()
                (outcome,) = store.batches.ingest([Submission("r", batch, batch.seq, 1.0)])
                took.append(time.perf_counter() - begin)
                assert outcome.error is None
    on, off = (rows / statistics.median(took[5:]) for _, took in sides)
    return on, off


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
    )
    print(f"numpy {np.__version__}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    print(f"command: python bench/detection/cost.py --repeats {options.repeats}\n")
    print(f"advance, processor microseconds a row (target {TARGET_US:.0f} at 1,000 layers)")
    for num_layers in (10, 100, 1_000, 10_000):
        repeats = options.repeats if num_layers <= 1_000 else options.repeats // 5
        parts = []
        for rows in (1, 10, 50):
            cost = 1e6 * cost_per_row(num_layers, rows, repeats)
            missed = num_layers == 1_000 and rows == 10 and cost > TARGET_US
            parts.append(f"{rows:>2} rows a batch {cost:7.1f}{' missed' if missed else ''}")
        print(f"  {num_layers:>6} layers: " + "   ".join(parts))
    print("\nstore.ingest, rows a second, 10 rows a batch, rules on / off (target 80 %)")
    for num_layers in (10, 100, 1_000):
        on, off = ingest(num_layers, 10, 2 * options.repeats)
        missed = "" if on >= TARGET_SHARE * off else " missed"
        print(f"  {num_layers:>6} layers: {on:7.0f} / {off:7.0f} = {100 * on / off:.0f} %{missed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
