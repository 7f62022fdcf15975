"""One training of a scenario, watched by the real SNCallback, and what it reported."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faults import Fault
from kinds import make
from scenarios import Scenario
from tasks import Task
from torch import nn
from treatments import Treatment, untreated

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
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)  # norms of 1-d parameters
    arrays: Arrays = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # of measured layers, if it was watched
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
    task, fault, optimizer = begin(scenario, seed)
    trained, rows = Trained(), list[Any]()
    callback = SNCallback(task.model, optimizer=optimizer, signals=ALL_SIGNALS, **watched)
    with callback:
        trained.kinds = {layer.name: layer.kind for layer in callback.layers.layers}
        for step in range(scenario.rows):
            try:
                loss = advance(scenario, task, fault, optimizer, step, trained, untreated)
                callback.step(loss=loss)
                task.after(step)
            except GuardStopped:
                trained.stopped = True
            rows.append(callback.latest)
            if trained.stopped or has_ended(trained):
                break
    rows.append(callback.latest)
    if callback.errors:
        raise RuntimeError(f"the callback must measure every step, got {callback.errors} errors")
    trained.arrays = (
        {} if trained.stopped else arrays(rows, trained, task.model)
    )  # its last row has no loss
    trained.vetoes = int(sum(row.scalars.get("guard_vetoes", 0) for row in rows))
    trained.rollbacks = int(sum(row.scalars.get("guard_rollbacks", 0) for row in rows))
    return trained


def train_alone(scenario: Scenario, seed: int, treatment: Treatment = untreated) -> Trained:
    """Train without SNCallback."""
    task, fault, optimizer = begin(scenario, seed)
    trained = Trained()
    for step in range(scenario.rows):
        advance(scenario, task, fault, optimizer, step, trained, treatment)
        task.after(step)
        if has_ended(trained):
            break
    return trained


def begin(scenario: Scenario, seed: int) -> tuple[Task, Fault, torch.optim.Optimizer]:
    task = make(scenario.task, seed, dict(scenario.options))
    fault = scenario.fault(seed) if scenario.fault else Fault()
    return task, fault, optimizer_of(scenario, task.model)


def has_ended(trained: Trained) -> bool:
    """Return whether the loss has not been finite for a while."""
    return any(not math.isfinite(loss) for loss in trained.losses[-AFTERMATH - 1 :][:1])


def advance(
    scenario: Scenario,
    task: Task,
    fault: Fault,
    optimizer: torch.optim.Optimizer,
    step: int,
    trained: Trained,
    treatment: Treatment,
) -> torch.Tensor:
    """Make one step, and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(scenario, step) * fault.rate(step)
    loss = task.loss(step, fault)
    trained.losses.append(float(loss.detach()))
    if not fault.keeps_gradients(step):
        optimizer.zero_grad()
    loss.backward()
    fault.spoil_gradients(step, task.model)
    is_made = treatment(task.model)
    if scenario.clip:
        nn.utils.clip_grad_norm_(task.model.parameters(), scenario.clip)
    fault.spoil_weights(step, task.model, optimizer)
    if fault.skips(step):
        skip(task.model, optimizer)
    elif is_made:
        optimizer.step()
    trained.vectors.append(vector_norms(task.model))
    return loss


def skip(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make a step that changes nothing, with infinite gradients, as an overflow leaves them."""
    kept = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    for parameter, value in zip(model.parameters(), kept, strict=True):
        parameter.data.copy_(value)
        if parameter.grad is not None:
            parameter.grad.fill_(torch.inf)
    optimizer.load_state_dict(state)


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


def vectors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim == 1 and p.requires_grad}


def vector_norms(model: nn.Module) -> npt.NDArray[np.float32]:
    return np.array([float(value.norm()) for value in vectors(model).values()], np.float32)


def arrays(latest: list[Any], trained: Trained, model: nn.Module) -> Arrays:
    """Return the measurements, one per step from 0 on, in the form of the files."""
    by_step = {row.step: row for row in latest if row.step >= 0}
    if sorted(by_step) != list(range(len(by_step))):
        raise RuntimeError(f"every step must have arrived, got {len(by_step)} of {max(by_step)}")
    rows = [by_step[step] for step in range(1, len(by_step))]
    found: Arrays = {"names": np.array(rows[0].names), "s0": by_step[0].row("sigma")}
    for key, metric in METRICS.items():
        found[key] = np.stack([row.row(metric) for row in rows])
    found["vnames"] = np.array([*vectors(model)], np.str_)
    found["vnorm"] = np.stack(trained.vectors[: len(rows)])
    for key, scalar in SCALARS.items():
        found[key] = np.array([row.scalars[scalar] for row in rows], np.float32)
    return found
