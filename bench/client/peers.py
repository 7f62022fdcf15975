"""The same steps through snc, trackio and MLflow in one run: durable values per second and bytes.

    python bench/client/peers.py [--rounds 3] [--environment DIR]

A step is 100 layers x 5 metrics, in the form that each tool takes: an array for snc (`Sender.put`,
into a real ``snc serve`` process), a dictionary for trackio (`trackio.log`), and for MLflow
`log_metrics` on its default store, SQLite. The data: sigma wanders, sigma_upper follows it,
threshold and scale stand still, the residual is noise. Each round gives every tool its steps, one
tool after the other; a figure is what it took from the first hand-over until the tool said that
all is stored: the return of `Sender.close`, of `trackio.finish`, of MLflow's last call. MLflow gets
few steps because each takes long. Imports and starts are not counted.

trackio and MLflow are installed into an environment of their own, kept in --environment for the
next run. Targets: at least 15 times the rate of trackio, 1,000 times that of MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, METRICS = 100, ("sigma", "sigma_upper", "threshold", "scale", "residual")
PER_STEP = LAYERS * len(METRICS)
STEPS = {"snc": 10_000, "trackio": 1_000, "mlflow": 20}  # per round
TARGETS = {"trackio": 15, "mlflow": 1_000}
NAMES = [f"blocks.{i}.weight" for i in range(LAYERS)]


def walk(steps: int) -> np.ndarray:
    """Return [steps, metrics, layers] float32: sigma wanders, a threshold stands, scale is 1."""
    rng = np.random.default_rng(0)
    sigma = np.exp(np.cumsum(rng.normal(0, 2e-3, (steps, LAYERS)), axis=0))
    noise = rng.random((steps, LAYERS)) * 1e-3
    columns = sigma, sigma * 1.05, np.full_like(sigma, 3.0), np.ones_like(sigma), noise
    return np.stack(columns, axis=1).astype(np.float32)


def dictionaries(steps: int) -> list[dict[str, float]]:
    keys = [f"{metric}.{name}" for metric in METRICS for name in NAMES]
    return [dict(zip(keys, row.ravel().tolist(), strict=True)) for row in walk(steps)]


# Workers: each imports its tool, then answers every line on stdin with the seconds it took.
def snc_worker(folder: Path, steps: int) -> Iterator[float]:
    from snc_client.sender import Sender
    from snc_service.wire import LayerTable

    table, rows, scalars = LayerTable.of_names(NAMES), walk(steps), dict[str, float]()
    for number in range(10**6):
        yield 0.0
        out = Sender(os.environ["SNC_URL"], table=table, metrics=METRICS, run=f"round{number}")
        began = time.perf_counter()
        for step, row in enumerate(rows):
            out.put(step, row, scalars, 1_763_800_000.0)
        out.close(120)
        yield time.perf_counter() - began
        assert out.sent_values == steps * PER_STEP, out.last_error


def trackio_worker(folder: Path, steps: int) -> Iterator[float]:
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    import trackio

    rows = dictionaries(steps)
    for number in range(10**6):
        trackio.init(project="peers", name=f"round{number}")
        yield 0.0
        began = time.perf_counter()
        for step, row in enumerate(rows):
            trackio.log(row, step=step)
        trackio.finish()
        yield time.perf_counter() - began


def mlflow_worker(folder: Path, steps: int) -> Iterator[float]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("peers")
    rows = dictionaries(steps)
    while True:
        mlflow.start_run()
        yield 0.0
        began = time.perf_counter()
        for step, row in enumerate(rows):
            mlflow.log_metrics(row, step=step)
        yield time.perf_counter() - began
        mlflow.end_run()


WORKERS: dict[str, Callable[[Path, int], Iterator[float]]] = {
    "snc": snc_worker,
    "trackio": trackio_worker,
    "mlflow": mlflow_worker,
}


def work(tool: str, folder: Path) -> None:
    """Be a worker: what the tool prints goes to stderr, stdout is for us alone."""
    said, sys.stdout = sys.stdout, sys.stderr
    rounds = WORKERS[tool](folder, STEPS[tool])
    next(rounds)
    version = __import__(tool).__version__ if tool != "snc" else _snc_version()
    print(json.dumps(version), file=said, flush=True)
    for _ in sys.stdin:
        print(json.dumps(next(rounds)), file=said, flush=True)
        next(rounds)


def _snc_version() -> str:
    from snc_service import __version__

    return __version__


class Worker:
    """The process of one tool, and the folder in which it keeps what it stored."""

    def __init__(self, tool: str, python: str, folder: Path, log: Path, **env: str) -> None:
        self.tool, self.folder = tool, folder
        folder.mkdir(exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).resolve()), "--worker", tool, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )  # fmt: skip
        self.log = log
        self.version = self.answer()
        self.seconds: list[float] = []

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(self.log.read_text()[-3_000:])
        return json.loads(line)

    def round(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self.answer())

    @property
    def rate(self) -> float:
        """Return values per second of the median round."""
        return STEPS[self.tool] * PER_STEP / statistics.median(self.seconds)

    @property
    def bytes_per_value(self) -> float:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        values = len(self.seconds) * STEPS[self.tool] * PER_STEP
        return sum(path.stat().st_size for path in files) / values

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def environment(folder: Path) -> str:
    """Return the Python of an environment that has trackio and MLflow, made if need be."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing trackio and MLflow into {folder} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "trackio", "mlflow"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        (folder / "ready").touch()
    return str(python)


def serve(store: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "SNC_STORE": f"sqlite:///{store}", "SNC_ACCESS_LOG": "0"}
    command = [sys.executable, "-m", "snc_service.cli", "serve", f"--port={port}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**env, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
        )
    while b"serves" not in log.read_bytes():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return process, f"http://127.0.0.1:{port}"


def folded_bytes_per_value(worker: Worker) -> float:
    """Return the bytes per value once all is in tiles, as the service does by itself in time."""
    from snc_service.detect.rules import RunRules
    from snc_service.store import open_store

    with closing(open_store(f"sqlite:///{worker.folder}/snc.db")) as store:
        store.batches.judge_with(RunRules)
        while store.fold(5.0, now=time.time() + 86_400):
            pass
        store._database.checkpoint()
        for _ in range(50):
            store._database.reclaim()
    return worker.bytes_per_value


def told(worker: Worker, ours: Worker) -> None:
    seconds = ", ".join(f"{seconds:.2f}" for seconds in worker.seconds)
    line = (
        f"{worker.tool} {worker.version}: {worker.rate:,.0f} durable values/s "
        f"({STEPS[worker.tool]} steps a round: {seconds} s), "
        f"{worker.bytes_per_value:.1f} bytes/value"
    )
    if worker.tool in TARGETS:
        ratio, target = ours.rate / worker.rate, TARGETS[worker.tool]
        line += f"; snc is {ratio:,.0f} times as fast, target {target:,}: "
        line += "met" if ratio >= target else "missed"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    default = Path(tempfile.gettempdir()) / "snc-bench-peers"
    parser.add_argument("--environment", type=Path, default=default)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker[0], Path(asked.worker[1]))
        return
    python = environment(asked.environment)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    print(f"{LAYERS} layers x {len(METRICS)} metrics a step, {asked.rounds} rounds, medians")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "snc").mkdir()
        service, url = serve(folder / "snc" / "snc.db", folder / "service.log")
        try:
            workers = [
                Worker(tool, python if tool in TARGETS else sys.executable, folder / tool,
                       folder / f"{tool}.log", SNC_URL=url)
                for tool in STEPS
            ]  # fmt: skip
            for _ in range(asked.rounds):
                for worker in workers:
                    worker.round()
            for worker in workers:
                worker.close()
        finally:
            service.terminate()
            service.wait()
        for worker in workers:
            told(worker, workers[0])
        print(f"snc folded: {folded_bytes_per_value(workers[0]):.1f} bytes/value")


if __name__ == "__main__":
    main()
