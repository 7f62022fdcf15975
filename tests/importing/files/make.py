"""Writes the files beside it with the tools themselves, all from the same numbers.

    python make.py FOLDER    # in an environment with wandb, tensorboard and mlflow

W&B 0.31.0, TensorBoard 2.21.0 and MLflow 3.17.2 wrote those that are here. Of MLflow's database
only the tables that are read are kept, as SQL.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

TABLES = ("experiments", "runs", "metrics", "params", "tags")


def rows(count: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield steps and what is logged at them: 2 / step, NaN at step 20, and norms."""
    for step in range(1, count + 1):
        yield (
            step,
            {
                "train/loss": float("nan") if step == 20 else 2.0 / step,
                "train/learning_rate": 1e-3,
                "sigma/fc1.weight": 1 + step / 8,
                "sigma/fc2.weight": 2.0,
                "l2_norm/grad/fc1.weight": 0.5 * step,
            },
        )


def wandb_log(folder: Path) -> None:
    import wandb

    settings = wandb.Settings(
        host="host", disable_git=True, disable_code=True, console="off", x_disable_meta=True,
        x_disable_stats=True, x_disable_machine_info=True,
    )  # fmt: skip
    run = wandb.init(
        project="demo", name="first", mode="offline", dir=str(folder), id="abcd1234",
        config={"lr": 1e-3, "model": {"width": 64}}, tags=["base"], settings=settings,
    )  # fmt: skip
    for step, values in rows(60):
        run.log(values, step=step)
    run.log({"weights": wandb.Histogram([1, 2, 3]), "text": "hello"}, step=61)
    run.finish()


def event_file(folder: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / "first"))
    for step, values in rows(30):
        for tag, value in values.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=1e9 + step, step=step, summary=summary))
    histogram = Summary(value=[Summary.Value(tag="h", histo=HistogramProto(min=0, max=1))])
    writer.add_event(Event(wall_time=1e9, step=31, summary=histogram))
    writer.add_event(Event(wall_time=1e9, step=31, summary=scalar_pb("v2/loss", 0.25)))
    writer.close()


def mlflow_database(folder: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment("demo", artifact_location="file:///nowhere")
    with mlflow.start_run(experiment_id=experiment, run_name="first"):
        mlflow.log_params({"lr": 1e-3})
        mlflow.set_tag("team", "a")
        for step, values in rows(30):
            mlflow.log_metrics(values, step=step)
        mlflow.log_metric("train/loss", float("inf"), step=31)
    with sqlite3.connect(folder / "mlflow.db") as base:
        starts = tuple(f'{verb} "{t}"' for t in TABLES for verb in ("CREATE TABLE", "INSERT INTO"))
        kept = [line for line in base.iterdump() if line.startswith(starts)]
    (folder / "mlflow.sql").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    os.environ["WANDB_SILENT"] = "true"
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for write in (wandb_log, event_file, mlflow_database):
        write(target)
