"""Writes the same eight runs for TensorBoard, MLflow and trackio: the data of docs/comparison.md.

    python bench/client/peer_pages.py FOLDER   # with numpy, tensorboard, mlflow and trackio

300 steps of a loss and of sigma of 30 layers. In run-5 sigma of ``blocks.2.value.weight`` grows by
3 % a step from step 201 on, and the loss turns up 30 steps later. In run-6 sigma of
``blocks.0.out.weight`` is NaN from step 221 on, and the loss is a step later. Six are healthy.

    tensorboard --logdir FOLDER/tb
    mlflow server --backend-store-uri sqlite:///FOLDER/mlflow.db
    TRACKIO_DIR=FOLDER/trackio trackio show --project cmp
    snc import FOLDER/tb
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

RUNS, LAYERS, STEPS = 8, 30, 300
PARTS = ["query", "key", "value", "out", "up", "down"]
NAMES = [f"sigma/blocks.{at // 6}.{PARTS[at % 6]}.weight" for at in range(LAYERS)]
LATE, BROKEN = 14, 3  # layers


def rows(run: int) -> list[dict[str, float]]:
    """Return what one run logs, step by step."""
    rng = np.random.default_rng(run)
    steps = np.arange(1, STEPS + 1)
    loss = 3 * np.exp(-steps / 100) + 0.5 + 0.05 * rng.standard_normal(STEPS)
    sigma = 2 + 0.002 * steps[:, None] * rng.random(LAYERS)[None]
    sigma += 0.01 * rng.standard_normal((STEPS, LAYERS))
    if run == 5:
        sigma[200:, LATE] *= 1.03 ** np.arange(100)
        loss[230:] += 0.02 * np.arange(70)
    if run == 6:
        sigma[220:, BROKEN] = np.nan
        loss[221:] = np.nan
    return [
        {"train/loss": float(loss[at]), **dict(zip(NAMES, sigma[at].tolist(), strict=True))}
        for at in range(STEPS)
    ]


def tensorboard(folder: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for run in range(RUNS):
        writer = EventFileWriter(str(folder / "tb" / f"run-{run}"))
        for step, row in enumerate(rows(run), 1):
            values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
            summary = Summary(value=values)
            writer.add_event(Event(wall_time=1.7e9 + step, step=step, summary=summary))
        writer.close()


def mlflow(folder: Path) -> None:
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    experiment = mlflow.create_experiment("cmp", artifact_location="file:///nowhere")
    for run in range(RUNS):
        made = client.create_run(experiment, run_name=f"run-{run}").info.run_id
        metrics = [
            Metric(name, value, 1_700_000_000_000 + step * 1_000, step)
            for step, row in enumerate(rows(run), 1)
            for name, value in row.items()
        ]
        for start in range(0, len(metrics), 1_000):  # the most that a batch may hold
            client.log_batch(made, metrics=metrics[start : start + 1_000])
        client.set_terminated(made)


def trackio(folder: Path) -> None:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio

    for run in range(RUNS):
        trackio.init(project="cmp", name=f"run-{run}")
        for step, row in enumerate(rows(run), 1):
            trackio.log(row, step=step)
        trackio.finish()


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    target.mkdir(parents=True, exist_ok=True)
    for write in (tensorboard, mlflow, trackio):
        start = time.perf_counter()
        write(target)
        print(f"{write.__name__}: {time.perf_counter() - start:.1f} s")
