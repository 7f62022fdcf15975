"""What the checksums of stored values cost: the same work with and without them, in turns.

    python bench/service/checksums.py [--turns 15]

Without them, the functions that compute them are replaced by ones that do nothing. Prints the CPU
time of this process with checksums over that without: the median ratio of neighbouring turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import Store, open_store
from snc_service.store.sql.series import checksums, tail
from snc_service.store.sql.series.stored_tiles import StoredTile
from snc_service.store.types import Window

SMALL, WIDE = table(*(f"l{i}" for i in range(100))), table(*(f"l{i}" for i in range(1_000)))
METRICS = ("sigma", "threshold", "scale", "frobenius", "grad_norm")


@contextmanager
def without() -> Iterator[None]:
    with (
        mock.patch.object(checksums, "of_batch", return_value=b""),
        mock.patch.object(checksums, "of_tile", return_value=0),
        mock.patch.object(tail, "broken_blocks", return_value=[]),
        mock.patch.object(StoredTile, "is_intact", return_value=True),
    ):
        yield


class Ingest:
    """Batches of one run after another, each seq once."""

    def __init__(self, store: Store, layers, steps: int, group: int) -> None:
        self.store, self.layers, self.steps, self.group, self.seq = store, layers, steps, group, 0
        self.run = f"r{len(layers.layers)}"
        new_run(store, self.run)
        store.batches.put_layer_table(self.run, layers)
        shape = (len(METRICS), steps, len(layers.layers))
        self.values = np.random.default_rng(0).random(shape, np.float32)

    def __call__(self) -> None:
        some = []
        for _ in range(self.group):
            first = self.seq * self.steps
            metrics = dict(zip(METRICS, self.values, strict=True))
            some.append(batch(self.layers, self.seq, range(first, first + self.steps), metrics))
            self.seq += 1
        begun = time.process_time()
        stored(self.store, *some, run=self.run)
        self.took = time.process_time() - begun


def timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return getattr(work, "took", time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    asked = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"SQLite {sqlite3.sqlite_version}, {asked.turns} turns"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_store(f"sqlite:///{folder}/snc.db")) as store,
    ):
        small, big = Ingest(store, SMALL, 1, 64), Ingest(store, WIDE, 100, 4)
        folded = Ingest(store, table(*(f"m{i}" for i in range(64))), 512, 1)
        recent = Ingest(store, table(*(f"n{i}" for i in range(101))), 1, 256)
        recent()
        for _ in range(10):
            folded()
        while store.fold(1.0, now=NOW):
            pass

        def history(run: str, layer: str, points: int) -> Callable[[], object]:
            window = Window(points=points)
            return lambda: [
                store.histories.of_layers(run, "sigma", [layer], window) for _ in range(20)
            ]

        works = {
            "ingest, 64 batches of 1 step x 100 layers x 5 metrics": small,
            "ingest, 4 batches of 100 steps x 1000 layers x 5 metrics": big,
            "a layer from the tail, 256 batches of 1 step x 505 values": history(
                "r101", "n50", 10**6
            ),
            "a layer from tiles, 5120 steps": history("r64", "m5", 10**6),
            "a layer from rollups, 5120 steps in 80 buckets": history("r64", "m5", 80),
            "a heatmap of 64 layers from rollups": lambda: [
                store.histories.of_layers("r64", "sigma", folded.layers.names, Window(points=160))
                for _ in range(20)
            ],
        }
        for name, work in works.items():
            ratios = []
            for _ in range(asked.turns):
                checked = timed(work)
                with without():
                    ratios.append(checked / timed(work))
            print(f"  {name}: {statistics.median(ratios):.3f}", flush=True)


if __name__ == "__main__":
    main()
