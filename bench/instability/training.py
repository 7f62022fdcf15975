"""One training of a scenario, watched by the real SNCallback, and what it reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faults import Fault
from scenarios import Scenario
from tasks import Task, make
from torch import nn

from snc_client import GuardStopped, SNCallback
from snc_client.callback.monitor.norms import ALL_SIGNALS
from snc_service.backtest.files import METRICS, SCALARS

AFTERMATH = 15  # rows that follow a loss that is not finite
RAMP = 1.02  # growth of a rising rate, a row
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class Trained:
    """The loss of each row, and, if the run was watched, its arrays as `read_run` reads them."""

    losses: list[float] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    vetoes: int = 0
    rollbacks: int = 0
    stopped: bool = False  # by the guard

    @property
    def end(self) -> float:
        """Return the mean loss of the last 30 rows; infinite if not finite, or stopped."""
        mean = float(np.mean(self.losses[-30:]))
        return mean if math.isfinite(mean) and not self.stopped else math.inf


def train(scenario: Scenario, seed: int, **watched: Any) -> Trained:
    """Train; ``watched`` are arguments of SNCallback, such as guard or threshold."""
    task = make(scenario.task, seed, dict(scenario.options))
    fault = scenario.fault(seed) if scenario.fault else Fault()
    optimizer = optimizer_of(scenario, task.model)
    trained, rows = Trained(), list[Any]()
    callback = SNCallback(task.model, optimizer=optimizer, signals=ALL_SIGNALS, **watched)
    with callback:
        for step in range(scenario.rows):
            try:
                advance(scenario, task, fault, optimizer, callback, step, trained)
            except GuardStopped:
                trained.stopped = True
            rows.append(callback.latest)
            if trained.stopped:
                break
            if any(not math.isfinite(loss) for loss in trained.losses[-AFTERMATH - 1 :][:1]):
                break
    rows.append(callback.latest)
    if callback.errors:
        raise RuntimeError(f"the callback must measure every step, got {callback.errors} errors")
    trained.arrays = {} if trained.stopped else arrays(rows)  # its last row has no loss
    trained.vetoes = int(sum(row.scalars.get("guard_vetoes", 0) for row in rows))
    trained.rollbacks = int(sum(row.scalars.get("guard_rollbacks", 0) for row in rows))
    return trained


def advance(
    scenario: Scenario,
    task: Task,
    fault: Fault,
    optimizer: torch.optim.Optimizer,
    callback: SNCallback,
    step: int,
    trained: Trained,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(scenario, step) * fault.rate(step)
    loss = task.loss(step, fault)
    trained.losses.append(float(loss.detach()))
    if not fault.keeps_gradients(step):
        optimizer.zero_grad()
    loss.backward()
    fault.spoil_gradients(step, task.model)
    if scenario.clip:
        nn.utils.clip_grad_norm_(task.model.parameters(), scenario.clip)
    fault.spoil_weights(step, task.model, optimizer)
    optimizer.step()
    callback.step(loss=loss)
    task.after(step)


def rate(scenario: Scenario, step: int) -> float:
    """Return the factor of the schedule."""
    warm = min(1.0, (step + 1) / scenario.warm_up) if scenario.warm_up else 1.0
    if scenario.schedule == "ramp":
        return RAMP**step
    if scenario.schedule == "constant":
        return warm
    period = scenario.rows // 2 if scenario.schedule == "restart" else scenario.rows
    return warm * (0.55 + 0.45 * math.cos(math.pi * (step % period) / period))


def optimizer_of(scenario: Scenario, model: nn.Module) -> torch.optim.Optimizer:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((f for part, f in scenario.rates.items() if part in name), 1.0)
        groups.setdefault(factor, []).append(parameter)
    listed = [
        {"params": parameters, "lr": factor * scenario.lr, "peak": factor * scenario.lr}
        for factor, parameters in groups.items()
    ]
    if scenario.optimizer == "sgd":
        return torch.optim.SGD(
            listed, momentum=scenario.momentum, weight_decay=scenario.weight_decay
        )
    return torch.optim.AdamW(listed, betas=scenario.betas, weight_decay=scenario.weight_decay)


def arrays(latest: list[Any]) -> Arrays:
    """Return the measurements, one per step from 0 on, in the form of the files."""
    by_step = {row.step: row for row in latest if row.step >= 0}
    if sorted(by_step) != list(range(len(by_step))):
        raise RuntimeError(f"every step must have arrived, got {len(by_step)} of {max(by_step)}")
    rows = [by_step[step] for step in range(1, len(by_step))]
    found: Arrays = {"names": np.array(rows[0].names), "s0": by_step[0].row("sigma")}
    for key, metric in METRICS.items():
        found[key] = np.stack([row.row(metric) for row in rows])
    for key, scalar in SCALARS.items():
        found[key] = np.array([row.scalars[scalar] for row in rows], np.float32)
    return found
