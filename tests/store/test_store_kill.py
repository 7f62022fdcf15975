"""kill -9 within ingest and folding: what was acknowledged is there, once, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_cases import as_sent, bits
from store_victim import LAYERS, WRITERS, batch_number, next_seq, submission

from snc_service.store import open_store, tiles
from snc_service.store.types import Window
from snc_service.wire import absent

ROUNDS = 5


def killed_after(seconds: float, url: str, acks: Path) -> None:
    """Run the victim, wait until it has acknowledged something new and a while more, kill it."""
    before = acks.stat().st_size if acks.exists() else 0
    here = Path(__file__).resolve().parents[1] / "support"
    victim = subprocess.Popen(
        [sys.executable, str(here / "store_victim.py"), url, str(acks)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not acks.exists() or acks.stat().st_size == before:
        assert victim.poll() is None, victim.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    assert victim.poll() is None, victim.stderr.read().decode()
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    victim.stderr.close()


def acknowledged(acks: Path) -> dict[str, int]:
    last: dict[str, int] = dict.fromkeys(WRITERS, -1)
    for line in acks.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            writer, seq = line.split()
            last[writer] = int(seq)
    return last


def check(store, stored: dict[str, int], run: str = "r1") -> None:
    """Compare every value of every batch up to each writer's last one; no other may be there."""
    batches = [batch_number(w, seq) for w, last in stored.items() for seq in range(last + 1)]
    steps = np.array([step for b in batches for step in b.steps])
    assert len(np.unique(steps)) == len(steps)
    order = np.argsort(steps)
    wanted = np.concatenate([b.values[0] for b in batches])[order].T
    loss = np.concatenate([b.scalar_values[0] for b in batches])[order]
    sent_steps, sent = as_sent(store, run, "sigma", LAYERS.names)
    np.testing.assert_array_equal(sent_steps, steps[order])
    np.testing.assert_array_equal(sent, bits(wanted))
    got = store.histories.of_layers(run, "sigma", LAYERS.names, Window(points=10**7))
    assert got.bucket_steps == 1
    np.testing.assert_array_equal(got.steps, steps[order])
    np.testing.assert_array_equal(absent(got.max), absent(wanted))
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got.nonfinite, ~finite & ~absent(wanted))
    np.testing.assert_array_equal(bits(got.max)[finite], bits(wanted)[finite])
    scalar = store.histories.of_scalar(run, "loss", Window(points=10**7))
    np.testing.assert_array_equal(bits(scalar.max[0]), bits(loss))
    coarse = store.histories.of_layers(run, "sigma", LAYERS.names, Window(points=3))
    for group, first in enumerate(coarse.steps):
        inside = steps[order] // coarse.bucket_steps * coarse.bucket_steps == first
        largest = np.where(finite, wanted, -np.inf)[:, inside].max(axis=1)
        largest[~finite[:, inside].any(axis=1)] = np.nan
        np.testing.assert_array_equal(coarse.max[:, group], largest)


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_torn_or_doubled(store_url, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_STEPS", 64)
    monkeypatch.setattr(tiles, "FANOUT", 8)
    url, acks = store_url, tmp_path / "acks"
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    folded = 0
    for _ in range(ROUNDS):
        killed_after(float(rng.uniform(0, 0.5)), url, acks)
        store = open_store(url)
        sure = acknowledged(acks)
        stored = {writer: next_seq(store, writer) - 1 for writer in WRITERS}
        for writer in WRITERS:
            assert stored[writer] >= sure[writer]
            again = [submission(writer, seq) for seq in range(stored[writer] + 1)[-3:]]
            assert all(outcome.duplicate for outcome in store.batches.ingest(again))
        check(store, stored)
        with store._database.read() as connection:
            (folded,) = connection.execute("select count(*) from tile").fetchone()
            if url.startswith("sqlite"):
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        store.close()
    assert folded > 0
    assert min(stored.values()) > 20
