"""A process that ingests and folds until it is killed: `python store_victim.py URL ACKS`.

Batch ``seq`` of a writer is a function of its number alone, so whoever looks at the store later
knows every bit that must be there. After each commit its line is appended to the file ACKS.
"""

from __future__ import annotations

import sys
import threading
import zlib

import numpy as np
from store_cases import NOW, batch, judge, new_run, table

from snc_service.store import Store, open_store, tiles
from snc_service.store.types import Submission
from snc_service.wire import ABSENT, Batch, encode

LAYERS = table(*(f"l{i}" for i in range(20)))
WRITERS = ("one", "two")


def batch_number(writer: str, seq: int) -> Batch:
    """Return batch ``seq`` of a writer: 1 or 5 steps in turn, each writer on its own steps."""
    n = 5 if seq % 4 == 0 else 1
    steps = [WRITERS.index(writer) + 2 * (5 * seq + i) for i in range(n)]
    rng = np.random.default_rng([seq, WRITERS.index(writer)])
    values = rng.integers(0, 2**32, (n, 20), dtype=np.uint32).view(np.float32)
    values[~np.isfinite(values)] = np.nan
    values[:, seq % 20] = ABSENT
    loss = rng.standard_normal(n).astype(np.float32)
    return batch(LAYERS, seq, steps, {"sigma": values}, {"loss": loss}, writer=writer)


def submission(writer: str, seq: int) -> Submission:
    one = batch_number(writer, seq)
    return Submission("r1", one, zlib.crc32(encode(one)), NOW)


def ingest(store: Store, writer: str, acks) -> None:
    seq = int(next_seq(store, writer))
    while True:
        group = [submission(writer, seq + i) for i in range(1 + seq % 3)]
        outcomes = store.batches.ingest(group)
        assert all(o.error is None for o in outcomes), outcomes
        seq += len(group)
        acks.write(f"{writer} {seq - 1}\n")
        acks.flush()


def next_seq(store: Store, writer: str) -> int:
    """Return the seq that the store waits for, as a gap far ahead tells it."""
    far = submission(writer, 10**6)
    (outcome,) = judge(store).batches.ingest([far])
    return outcome.error.expected


def main() -> None:
    tiles.TILE_STEPS, tiles.FANOUT = 64, 8  # small, so that kills fall into every kind of fold
    store = judge(open_store(sys.argv[1]))
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    with open(sys.argv[2], "a") as acks:
        for writer in WRITERS:
            threading.Thread(target=ingest, args=(store, writer, acks), daemon=True).start()
        while True:
            store.fold(0.05, now=NOW + 3_600)


if __name__ == "__main__":
    main()
