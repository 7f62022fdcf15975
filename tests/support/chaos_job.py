"""A training job as far as the sender sees it: `python chaos_job.py URL SPOOL RUN FIRST LOG`.

Hands over the steps from FIRST on until a file LOG.stop appears. What a step carries is a function
of its number alone, so whoever looks at the store later knows every bit that must be there. Before
each step a line in LOG gives it and the number of values acknowledged so far; after a clean end the
last line is repeated with all of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
from store_cases import as_sent, bits

from snc_client.sender import Pace, Sender
from snc_service.store import Store
from snc_service.store.types import Window
from snc_service.wire import ABSENT, LayerTable

TABLE = LayerTable.of_names([f"blocks.{i}.weight" for i in range(8)])
METRICS = ("sigma", "threshold")
THRESHOLD = np.float32(1.0)
PER_ROW = len(METRICS) * len(TABLE.layers) + 1  # and the loss
PACE = Pace(linger_seconds=0.02, first_backoff_seconds=0.02, max_backoff_seconds=0.2)
STEP_SECONDS = 0.003
CLOSE_SECONDS = 60.0


def row(step: int) -> tuple[np.ndarray, float]:
    """Return values [M, L] and the loss of a step: every kind of float32 occurs."""
    rng = np.random.default_rng(step)
    sigma = rng.standard_normal(len(TABLE.layers)).astype(np.float32)
    sigma[step % 8] = (ABSENT, np.nan, np.inf, -np.inf, -0.0, 1e-45)[step % 6]
    threshold = np.full_like(sigma, THRESHOLD)
    return np.stack([sigma, threshold]), float(np.float32(rng.standard_normal()))


class Job:
    """The job's process, and what all of its lives said of themselves."""

    def __init__(self, url: str, run: str, folder: Path) -> None:
        self.url, self.run, self.folder = url, run, folder
        self.lives: list[Path] = []
        self.firsts: list[int] = []
        self.torn = False
        self.start()

    def start(self) -> None:
        """Begin behind the last step that an earlier life handed over."""
        first = self.handed + 1
        self.lives.append(self.folder / f"{self.run}.{len(self.lives)}")
        self.firsts.append(first)
        spool = str(self.folder / "spool")
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.url, spool, self.run, str(first), str(self.lives[-1])],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    @property
    def handed(self) -> int:
        """Return the last step that was handed over, -1 before the first."""
        return max((said[-1][0] for said in map(_said, self.lives) if said), default=-1)

    def kill(self, rng: random.Random) -> None:
        assert self.process.poll() is None, self.process.stderr.read()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        logs = sorted((self.folder / "spool").glob(f"{self.run}.*/*.log"))
        if logs and rng.random() < 0.5:
            self.torn = True
            os.truncate(logs[-1], max(logs[-1].stat().st_size - rng.randint(1, 60), 0))

    def finish(self) -> None:
        """Let it flush and end: it fails if it had to drop anything."""
        Path(f"{self.lives[-1]}.stop").touch()
        try:
            _, error = self.process.communicate(timeout=100)
        except BaseException:
            self.process.kill()
            raise
        assert self.process.returncode == 0, error

    def check(self, store: Store) -> int:
        """Compare what is stored with what was handed over; return how many rows are missing."""
        names = TABLE.names
        got = store.histories.of_layers(self.run, "sigma", names, Window(points=10**7))
        present = set(got.steps.tolist())
        assert len(present) == len(got.steps)
        for life, first in zip(self.lives, self.firsts, strict=True):
            if not (said := _said(life)):
                continue
            acknowledged = range(first, first + said[-1][1] // PER_ROW)
            assert present.issuperset(acknowledged), f"{self.run}: acknowledged and lost"
            stored = [step for step in range(first, said[-1][0] + 1) if step in present]
            # Rows reach the spool in order: without a torn record only the last can be missing.
            assert self.torn or stored == list(range(first, first + len(stored)))
        assert present <= set(range(self.handed + 1))
        rows = [row(step) for step in got.steps.tolist()]
        sigma = np.stack([values[0] for values, _ in rows], axis=1)
        for number, metric in enumerate(METRICS):
            steps, sent = as_sent(store, self.run, metric, names)
            np.testing.assert_array_equal(steps, got.steps)
            wanted = np.stack([values[number] for values, _ in rows], axis=1)
            np.testing.assert_array_equal(sent, bits(wanted))
        loss = store.histories.of_scalar(self.run, "loss", Window(points=10**7))
        np.testing.assert_array_equal(loss.steps, got.steps)
        wanted = np.array([loss for _, loss in rows], np.float32)
        np.testing.assert_array_equal(bits(loss.max[0]), bits(wanted))
        found = store.runs.get(self.run)
        assert found.breaches == np.count_nonzero(sigma > THRESHOLD)
        # Without the record that names its place, a row that came again is a new attempt.
        assert self.torn or found.attempt == 0
        return self.handed + 1 - len(present)


def _said(life: Path) -> list[tuple[int, int]]:
    """Return what a life of a job wrote down: (step, values acknowledged)."""
    lines = life.read_text().splitlines(keepends=True) if life.exists() else []
    return [(int(a), int(b)) for a, b in (x.split() for x in lines if x.endswith("\n"))]


def main() -> None:
    url, spool, run, first, log = sys.argv[1:]
    out = Sender(url, table=TABLE, metrics=METRICS, run=run, spool=Path(spool), pace=PACE)
    step = int(first)
    with open(log, "a") as file:
        while not Path(f"{log}.stop").exists():
            values, loss = row(step)
            # Before it is handed over: a next life must not hand over again what this one did.
            said(file, step, out.sent_values)
            out.put(step, values, {"loss": loss}, 1_763_800_000.0 + step)
            time.sleep(STEP_SECONDS)
            step += 1
        out.close(CLOSE_SECONDS)
        assert out.dropped_values == 0, out.last_error
        assert out.sent_values == (step - int(first)) * PER_ROW, out.last_error
        said(file, step - 1, out.sent_values)


def said(file: TextIO, step: int, sent_values: int) -> None:
    file.write(f"{step} {sent_values}\n")
    file.flush()


if __name__ == "__main__":
    main()
