"""Columns of a training that goes wrong in known ways, for replays and backtests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[np.float32]]
LAYERS = ["blocks.0.fc.weight", "blocks.1.fc.weight", "head.weight"]


def course(num_rows: int, seed: int = 0) -> tuple[Columns, Columns]:
    """Return metrics [rows, 3] and scalars [rows] of a calm training, with noise."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.003, (num_rows, 3)).cumsum(axis=0) * 0.2
    sigma = np.array([1.0, 1.2, 2.0]) * np.exp(noise)
    metrics = {
        "sigma": sigma,
        "frobenius": 3 * sigma,
        "grad_norm": 0.1 * np.exp(random.normal(0, 0.1, (num_rows, 3))),
        "update_norm": 0.01 * sigma,
    }
    scalars = {
        "loss": 2.0 + random.normal(0, 0.05, num_rows),
        "lr": np.full(num_rows, 1e-3),
        "grad_norm": 0.2 * np.exp(random.normal(0, 0.05, num_rows)),
    }
    return as_float32(metrics), as_float32(scalars)


def as_float32(columns: dict[str, npt.NDArray[np.float64]]) -> Columns:
    return {name: column.astype(np.float32) for name, column in columns.items()}


def trouble(num_rows: int = 300, seed: int = 0) -> tuple[Columns, Columns]:
    """Return a training with a jump, growth, a spike of the gradient, NaN and a diverging loss."""
    metrics, scalars = course(num_rows, seed)
    metrics["sigma"][80:, 1] *= 1.3
    metrics["sigma"][150:, 2] *= np.exp(np.minimum(np.arange(num_rows - 150) * 0.03, 3.0))
    scalars["grad_norm"][120] *= 1_000
    metrics["grad_norm"][200, 0] = np.nan
    scalars["loss"][240:] += np.arange(num_rows - 240)
    scalars["lr"][260:] *= 20
    return metrics, scalars


def save(path, metrics: Columns, scalars: Columns, **more) -> None:
    """Write a run as `snc_service.backtest.files` reads it."""
    keys = {"sigma": "sigma", "frobenius": "fro", "grad_norm": "gnorm", "update_norm": "unorm"}
    arrays = {keys[name]: column for name, column in metrics.items()}
    arrays |= {"loss": scalars["loss"], "lr": scalars["lr"], "ggrad": scalars["grad_norm"]}
    np.savez(path, **{"names": np.array(LAYERS), **arrays, **more})
