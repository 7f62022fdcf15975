"""Single flipped bits in an embedded store: none may be served as a value.

    python bench/service/damage.py [--flips 1000] [--seed N]

Flips one bit at a time in a copy of a store: in tiles, in the tail, in the indexes of both, and in
the log of a service that was killed. Reads everything after that: as sent, one layer at a time, and
in coarse buckets. A value that was not stored is *wrong*; without an error, an answer may still
have *fewer values* than were stored. Target: 1,000 flips, 0 wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import Store, open_store
from snc_service.store.types import Extent, StoreError, Window
from snc_service.wire import absent

LAYERS = table(*(f"l{i}" for i in range(20)))
PARTS = ("tile", "sqlite_autoindex_tile_1", "tail", "tail_by_step", "sqlite_autoindex_tail_1")
WIDTHS = (8, 15, 30, 40, 60, 120, 240, 480, 960)  # points of answers to compare with
FOLDED, RECENT, STEPS = 10, 5, 128
Values = dict[tuple[str, str, str, int], bytes]


def fill(store: Store) -> None:
    """Store two runs: two chunks of each folded, the rest in the tail."""
    rng = np.random.default_rng(0)
    for run in ("a", "b"):
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
    for seq in range(FOLDED + RECENT):
        for run in ("a", "b"):
            steps = range(seq * STEPS, seq * STEPS + STEPS)
            values = rng.random((2, STEPS, 20), np.float32)
            one = batch(LAYERS, seq, steps, dict(zip(("sigma", "threshold"), values, strict=True)),
                        {"loss": rng.random(STEPS)})  # fmt: skip
            stored(store, one, run=run)
        if seq == FOLDED - 1:
            while store.fold(1.0, now=NOW + 3_600):
                pass


Answer = dict[int, np.ndarray]  # values by step


def served(store: Store, widths: Sequence[int] = (40,)) -> tuple[dict[str, Answer], int]:
    """Return all answers that the store gives, and how many it refuses as damaged."""
    answers: dict[str, Answer] = {}
    refused = 0
    for run in ("a", "b"):
        for metric in ("sigma", "loss"):
            for points in (None, 10**6, *widths):
                try:
                    how, found = answer(store, run, metric, points)
                    answers[f"{run} {metric} {how}"] = found
                except StoreError:
                    refused += 1
    return answers, refused


def answer(store: Store, run: str, metric: str, points: int | None) -> tuple[str, Answer]:
    """Return what it is, and one metric by step: all layers as sent, or some in buckets."""
    found: Answer = {}
    if points is None:
        for piece in store.histories.scan(run, Extent(metrics=(metric,))):
            for at, step in enumerate(piece.steps.tolist()):
                before = found.get(step, piece.values[:0, at])
                found[step] = np.concatenate([before, piece.values[:, at]])
        return "sent", found
    window = Window(points=points)
    if metric == "loss":
        got = store.histories.of_scalar(run, metric, window)
    else:
        got = store.histories.of_layers(run, metric, LAYERS.names[::5], window)
    for at, step in enumerate(got.steps.tolist()):
        found[step] = np.concatenate([x[:, at] for x in (got.mean, got.min, got.max)])
    return f"in buckets of {got.bucket_steps}", found


def is_part(answer: Answer, good: Answer) -> bool:
    """Return whether every value of an answer is the stored one, or said not to be measured."""
    if not answer.keys() <= good.keys():
        return False
    return all(
        len(found) == len(good[step])
        and (absent(found) | (found.view("<u4") == good[step].view("<u4"))).all()
        for step, found in answer.items()
    )


def is_short(answer: Answer, good: Answer) -> bool:
    return answer.keys() != good.keys() or any(absent(found).any() for found in answer.values())


def outcome(path: Path, good: dict[str, Answer]) -> str:
    """Return what became of a store with one flipped bit."""
    try:
        store = open_store(f"sqlite:///{path}")
    except (StoreError, sqlite3.Error):
        return "does not open"
    with closing(store):
        try:
            answers, refused = served(store)
        except Exception as error:
            return f"raises {type(error).__name__}"
        # Where values are missing, a coarse answer is one over fewer values.
        exact = [name for name in answers if name.endswith(("sent", "buckets of 1"))]
        short = any(is_short(answers[name], good[name]) for name in exact)
        for name in exact if short else answers:
            if not is_part(answers[name], good[name]):
                return "WRONG"
        if not any(is_short(answers[name], good[name]) for name in answers):
            return "refused" if refused else "same"
        if store.damages.count():
            return "fewer values, told"
        found = store.damages.verify()
        return f"fewer values, {'told by verify' if found.damaged or found.engine else 'silent'}"


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))


def pages_of(path: Path, part: str) -> list[int]:
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("select pageno from dbstat where name = ?", (part,))
        return [page for (page,) in rows]


def place(chance: random.Random, data: bytearray, pages: list[int], size: int, used: bool) -> int:
    """Return a byte of some pages; ``used``: that is not zero, for indexes are half empty."""
    while True:
        at = (chance.choice(pages) - 1) * size + chance.randrange(size)
        if data[at] or not used:
            return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, seed {asked.seed}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, logged = Path(folder) / "snc.db", Path(folder) / "logged.db"
        with closing(open_store(f"sqlite:///{path}")) as store:
            fill(store)
            for end in ("", "-wal"):  # as a kill -9 leaves it
                shutil.copy(f"{path}{end}", f"{logged}{end}")
        with closing(open_store(f"sqlite:///{path}")) as store:
            good, refused = served(store, WIDTHS)
        assert not refused
        places = {part: pages_of(path, part) for part in PARTS}
        with closing(sqlite3.connect(path)) as file:
            (size,) = file.execute("pragma page_size").fetchone()
        print({part: len(pages) for part, pages in places.items()})
        found: dict[str, Counter[str]] = {part: Counter() for part in (*PARTS, "log")}
        for number in range(asked.flips):
            part = (*PARTS, "log")[number % (len(PARTS) + 1)]
            copy = Path(folder) / "copy.db"
            for end in ("", "-wal", "-shm", "-wal-damaged"):
                Path(f"{copy}{end}").unlink(missing_ok=True)
            if part == "log":
                shutil.copy(logged, copy)
                data = bytearray(Path(f"{logged}-wal").read_bytes())
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                Path(f"{copy}-wal").write_bytes(data)
            else:
                data = bytearray(path.read_bytes())
                at = place(chance, data, places[part], size, "tail_" in part or "auto" in part)
                data[at] ^= 1 << chance.randrange(8)
                copy.write_bytes(data)
            found[part][outcome(copy, good)] += 1
            if (number + 1) % 100 == 0:
                print(f"{number + 1} flips: {counted(sum(found.values(), Counter()))}", flush=True)
        total = sum(found.values(), Counter())
        for part, counts in found.items():
            print(f"  {part}: {counted(counts)}")
        wrong = sum(n for what, n in total.items() if what.startswith("WRONG"))
        print(f"all: {counted(total)}")
        print(f"target 0 wrong values served: {'met' if not wrong else 'missed'}")


if __name__ == "__main__":
    main()
