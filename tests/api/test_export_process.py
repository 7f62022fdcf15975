"""Export by a real process: memory stays bounded, ingest goes on, who hangs up ends the work."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from store_cases import NOW, judge, table
from test_cli import environment

from snc_service.store import open_store
from snc_service.store.types import Submission
from snc_service.wire import MEDIA_TYPE, Batch, encode

NUM_LAYERS, NUM_STEPS, AT_ONCE = 1_000, 1_600, 100
METRICS = ("sigma", "threshold", "frobenius")
VALUES = NUM_LAYERS * NUM_STEPS * len(METRICS)  # 4.8 million: 115 MB as rows, 250 MB as text
LAYERS = table(*(f"blocks.{i}.weight" for i in range(NUM_LAYERS)))
MIB = 2**20


def walk(seq: int) -> Batch:
    rng = np.random.default_rng(seq)
    values = rng.standard_normal((len(METRICS), AT_ONCE, NUM_LAYERS), dtype=np.float32)
    steps = tuple(range(seq * AT_ONCE, (seq + 1) * AT_ONCE))
    none = np.empty((0, AT_ONCE), np.float32)
    return Batch("w", seq, LAYERS.hash, steps, METRICS, values, (), none)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """Return the file of a store with one large run, most of it folded."""
    path = tmp_path_factory.mktemp("export") / "snc.db"
    with closing(open_store(f"sqlite:///{path}")) as store:
        judge(store)
        store.runs.create("r", name="r", project="p", config={}, tags=(), policy=None, now=NOW)
        store.batches.put_layer_table("r", LAYERS)
        for seq in range(NUM_STEPS // AT_ONCE):
            (outcome,) = store.batches.ingest([Submission("r", walk(seq), seq, NOW)])
            assert outcome.error is None
        while store.fold(60, now=NOW):
            pass
    return path


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, int]]:
    """Run a service; yield its URL and the number of its process."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0"]
    with subprocess.Popen(
        [*command, f"--store=sqlite:///{path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            yield f"{url}/api/v1/runs/r", process.pid
        finally:
            process.terminate()
            process.wait(timeout=20)


def memory(pid: int, kind: str) -> int:
    """Return the bytes of memory that a process has (``VmRSS``) or had at most (``VmHWM``)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: /proc/PID/status")
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_memory_does_not_grow_with_what_is_exported(filled, form):
    with serving(filled) as (run, pid):
        one_layer = {"format": form, "layer": "blocks.0.weight"}
        httpx.get(f"{run}/export", params=one_layer, timeout=60).raise_for_status()
        before = memory(pid, "VmHWM")
        size, crc = 0, 0
        with httpx.stream("GET", f"{run}/export", params={"format": form}, timeout=60) as answer:
            assert answer.status_code == 200
            for chunk in answer.iter_bytes():
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        grown = memory(pid, "VmHWM") - before
    assert size > 3 * VALUES  # bytes on the wire or as text: the whole run came
    assert grown < 80 * MIB, f"{grown / MIB:.0f} MiB for {size / MIB:.0f} MiB of {form}"


def test_whoever_hangs_up_ends_the_work(filled):
    with serving(filled) as (run, pid):
        for _ in range(6):  # more than may run at once: each must give its place back
            with httpx.stream("GET", f"{run}/export", timeout=60) as answer:
                assert answer.status_code == 200
                next(answer.iter_bytes())
        deadline = time.monotonic() + 60
        while True:
            spent = cpu_seconds(pid)
            time.sleep(0.5)
            if cpu_seconds(pid) - spent < 0.1:
                break
            assert time.monotonic() < deadline
        one_layer = {"layer": "blocks.0.weight"}
        assert httpx.get(f"{run}/export", params=one_layer, timeout=60).status_code == 200


def test_an_export_amid_ingest_folding_and_another_runs_deletion_has_all_that_was_there(
    filled, tmp_path
):
    path = tmp_path / "snc.db"
    path.write_bytes(filled.read_bytes())
    stop, refused = threading.Event(), []

    def send(run: str) -> None:
        seq = NUM_STEPS // AT_ONCE
        while not stop.is_set():
            told = httpx.post(f"{run}/batches", content=encode(walk(seq)), timeout=60,
                              headers={"Content-Type": MEDIA_TYPE})  # fmt: skip
            refused.extend([told.text] * (told.status_code != 200))
            seq += 1

    with serving(path) as (run, _):
        other = run.removesuffix("/r")
        httpx.post(other, json={"run": "other"}).raise_for_status()
        thread = threading.Thread(target=send, args=(run,))
        thread.start()
        try:
            asked = {"format": "parquet", "metric": "sigma"}
            body = httpx.get(f"{run}/export", params=asked, timeout=100).raise_for_status().content
            httpx.delete(f"{other}/other").raise_for_status()
        finally:
            stop.set()
            thread.join()
    assert not refused
    found = pq.read_table(io.BytesIO(body), columns=["layer", "step", "value"])
    layers = found["layer"].combine_chunks()
    index = np.array([LAYERS.names.index(name) for name in layers.dictionary.to_pylist()])
    rows, steps = index[layers.indices.to_numpy()], found["step"].to_numpy()
    there = steps < NUM_STEPS
    assert there.sum() == NUM_LAYERS * NUM_STEPS
    got = np.full((NUM_STEPS, NUM_LAYERS), np.nan, np.float32)
    got[steps[there], rows[there]] = found["value"].to_numpy()[there]
    for seq in range(NUM_STEPS // AT_ONCE):
        wanted = walk(seq).values[0]
        np.testing.assert_array_equal(got[seq * AT_ONCE : (seq + 1) * AT_ONCE], wanted)
