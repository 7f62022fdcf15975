"""Mutated inputs in number: batches, configurations and files of weights. `make fuzz` runs it.

    python bench/service/fuzz.py [--batches N] [--http N] [--configurations N] [--files N]
                                 [--minutes 20]

An input is a sound one with some of its bytes, values or parts changed. Batches are decoded and, if
they are batches, judged by the rules and stored in this process (SQLite, 64 per transaction), or
posted to a real `snc serve`. Configurations go through the checks of their routes and of the
settings; what is accepted must survive being written and read. Files are given to `snc audit`.

Counted are what was accepted and what was refused. Ends with an error at the first exception that
is not one of ours, the first 5xx, the first defect in the log of the service, or a file that takes
longer than `FILE_SECONDS`. Without an argument the counts are those of the targets. With
``--minutes`` the batches in this process end after that time; how many were tried is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "cli"))

import numpy as np
from api_cases import batch_of, table_of
from fuzz_configurations import configurations
from fuzz_files import audit_files
from fuzz_mutations import changed
from store_cases import new_run

from snc_service.api.ingest.json_batch import decode_json
from snc_service.detect.rules import RunRules
from snc_service.problems import Problem
from snc_service.store import open_store
from snc_service.store.types import StoreError, Submission
from snc_service.wire import (
    MEDIA_TYPE,
    WireError,
    decode,
    encode,
)

TABLE = table_of("fc1.weight", "fc2.weight", "blocks.0.attn.in_proj_weight[q]")
TRIED = "tried"  # among what is counted: how many inputs there were
NUMBERS = tuple(
    np.array(bits, "<u4").tobytes()
    for bits in (0, 1, 0x80000000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC00001)
)  # zeros, the smallest, the largest, infinities, NaN and "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=1_000_000)
    parser.add_argument("--http", type=int, default=20_000)
    parser.add_argument("--configurations", type=int, default=50_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    asked = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"SQLite {sqlite3.sqlite_version}, seed {asked.seed}",
        flush=True,
    )
    for name, work, count in (
        ("mutated batches in process", partial(batches, minutes=asked.minutes), asked.batches),
        ("mutated batches over HTTP", over_http, asked.http),
        ("mutated configurations", configurations, asked.configurations),
        ("hostile files", audit_files, asked.files),
    ):
        if not count:
            continue
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            told = work(count, random.Random(asked.seed), Path(folder))
        seconds = time.perf_counter() - begun
        tried = told.pop(TRIED, count)
        print(f"\n{name}: {tried:,} of {count:,} in {seconds:.0f} s, 0 exceptions but ours, 0 5xx")
        for what, number in sorted(told.items(), key=lambda pair: -pair[1]):
            print(f"  {number:>9,}  {what}", flush=True)


def sound_frames() -> list[bytes]:
    """Return batches of every kind: several steps, scalars, times, gaps, attempts, no metric."""
    rng = np.random.default_rng(0)
    frames = []
    for seq, steps in enumerate(((0,), (1, 2), (3, 5, 9), (10,), (11,))):
        shape = (len(steps), len(TABLE.layers))
        frames.append(
            encode(
                batch_of(
                    TABLE,
                    seq,
                    steps,
                    writer="mutant",
                    scalars={"loss": [0.5] * len(steps), "lr": [1e-3] * len(steps)},
                    sigma=rng.random(shape),
                    threshold=np.ones(shape),
                )
            )
        )
    frames.append(encode(batch_of(TABLE, 5, (12,), writer="mutant", dropped=3, skipped=0,
                                  sigma=np.full((1, 3), np.nan))))  # fmt: skip
    return frames


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with bytes changed, cut, doubled or put in, or with a value of its header."""
    kind = rng.randrange(8)
    if kind < 3:
        return _other_header(data, rng)
    frame = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(frame) + 1)
        if kind == 3:
            frame[place:] = b""
        elif kind == 4:
            frame[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 5:
            end = place + rng.randrange(1, 40)
            frame[place:place] = frame[place:end]
        elif place < len(frame):
            frame[place] = rng.randrange(256) if kind == 6 else frame[place] ^ 1 << rng.randrange(8)
        if not frame:
            break
    return bytes(frame)


def _other_header(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[4:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(changed(header, rng), separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-(8 + len(text)) % 8)
    return data[:4] + len(text).to_bytes(4, "little") + text + data[8 + size :]


def batches(count: int, rng: random.Random, folder: Path, minutes: float) -> Counter[str]:
    told: Counter[str] = Counter()
    until = time.monotonic() + 60 * minutes
    frames = sound_frames()
    texts = [_as_json(decode(frame)) for frame in frames]
    waiting: list[Submission] = []
    with closing(open_store(f"sqlite:///{folder / 'snc.db'}")) as store:
        store.batches.judge_with(RunRules)
        # Durability is tried elsewhere; a million transactions must not wait for a disk.
        store._database._writer.execute("pragma synchronous = off")
        number = 0
        for done in range(count):
            if done % 3_000 == 0:  # a fresh run, so that not all end as conflicts and full
                _store_all(store, waiting, told)
                if time.monotonic() > until:
                    break
                number += 1
                new_run(store, f"r{number}")
                store.batches.put_layer_table(f"r{number}", TABLE)
            if done % 4 == 3:
                batch = _refused_or(decode, _judgeable(rng.choice(frames), rng, done), told)
            elif done % 8 == 6:
                batch = _refused_or(_from_text, json.dumps(changed(rng.choice(texts), rng)), told)
            else:
                batch = _refused_or(decode, mutated(rng.choice(frames), rng), told)
            told[TRIED] += 1
            if batch is not None:
                waiting.append(Submission(f"r{number}", batch, rng.getrandbits(32), 1.8e9))
            if len(waiting) == 64:
                _store_all(store, waiting, told)
        _store_all(store, waiting, told)
    return told


def _judgeable(data: bytes, rng: random.Random, number: int) -> bytes:
    """Return a batch of a new writer, so that the store takes it, with other steps and numbers."""
    size = int.from_bytes(data[4:8], "little")
    header = json.loads(data[8 : 8 + size])
    first = rng.choice((0, rng.randrange(5_000), 2**52))
    header |= {"writer": f"w{number}", "seq": 0, "skipped": 0}
    header["steps"] = [first + step for step in header["steps"]]
    if rng.random() < 0.2:
        header["dropped"] = rng.choice((1, 2**53 - 1))
    if rng.random() < 0.2:
        header["attempt"] = rng.choice((0, 1, 2**31 - 1))
    values = bytearray(data[8 + size :])
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(values) // 4) * 4
        values[place : place + 4] = rng.choice((rng.randbytes(4), *NUMBERS))
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    return data[:4] + len(text).to_bytes(4, "little") + text + bytes(values)


def _refused_or(read: Callable[[Any], Any], data: Any, told: Counter[str]) -> Any:
    try:
        return read(data)
    except WireError as error:
        told[f"refused: {error.field.split('.')[0][:20]}"] += 1
    except Problem as problem:
        told[_of(problem)] += 1
    return None


def _of(problem: Problem) -> str:
    assert problem.status_code < 500, problem
    return f"refused: {problem.kind}"


def _from_text(text: str) -> Any:
    return decode_json(text.encode("utf-8", "replace"))[0]


def _as_json(batch: Any) -> dict[str, Any]:
    return {
        "writer": "json", "seq": batch.seq, "steps": list(batch.steps),
        "layers": list(TABLE.names), "times": [1.8e9 + step for step in batch.steps],
        "metrics": {m: np.nan_to_num(batch.metric(m)).tolist() for m in batch.metrics},
        "scalars": {s: batch.scalar(s).tolist() for s in batch.scalars},
        "skipped": 0, "dropped": 0, "attempt": 0,
    }  # fmt: skip


def _store_all(store: Any, waiting: list[Submission], told: Counter[str]) -> None:
    """Store what is a batch; an error of the rules is a defect, any other is a refusal."""
    for outcome in store.batches.ingest(waiting) if waiting else ():
        if outcome.error is None:
            told["a repeated batch" if outcome.duplicate else "stored"] += 1
            continue
        assert isinstance(outcome.error, StoreError), outcome
        assert type(outcome.error) is not StoreError, outcome.error
        told[f"refused by the store: {type(outcome.error).__name__}"] += 1
    waiting.clear()


def over_http(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    from hostile import BATCHES, JSON, running_victim, surviving

    told: Counter[str] = Counter()
    frames = sound_frames()
    texts = [_as_json(decode(frame)) for frame in frames]
    with running_victim(folder) as victim, surviving(victim):
        assert victim.http.put(
            f"/api/v1/runs/r/layer-tables/{TABLE.hash}", content=TABLE.body, headers=JSON
        ).is_success
        for done in range(count):
            if done % 8 == 6:
                body = json.dumps(changed(rng.choice(texts), rng)).encode("utf-8", "replace")
                answer = victim.http.post(BATCHES, content=body, headers=JSON)
            else:
                frame = rng.choice(frames)
                body = _judgeable(frame, rng, done) if done % 4 == 3 else mutated(frame, rng)
                answer = victim.http.post(
                    BATCHES, content=body, headers={"Content-Type": MEDIA_TYPE}
                )
            assert answer.status_code < 500, (answer.status_code, answer.text, body)
            kind = "" if answer.is_success else answer.json()["type"].removeprefix("/problems/")
            told[f"{answer.status_code} {kind}"] += 1
    return told


if __name__ == "__main__":
    main()
