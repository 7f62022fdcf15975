"""Each rule about slow changes, on a real training that it is for and on one that it must leave."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snc_client import SNCallback
from snc_service.backtest.columns import rows
from snc_service.detect.memory import Memory
from snc_service.detect.rules import judge
from snc_service.store.types import Event
from snc_service.wire import ABSENT

METRICS = ("sigma", "frobenius", "grad_norm", "threshold")
FAULT = 80
Change = Callable[[nn.Module, torch.optim.Optimizer, int], None]


def nothing(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Leave the training alone."""


def train(
    before: Change = nothing,
    *,
    num_rows: int = 200,
    inputs: Callable[[torch.Tensor, int], torch.Tensor] = lambda x, step: x,
    targets: Callable[[torch.Tensor, int], torch.Tensor] = lambda y, step: y,
    threshold: float | None = None,
    scaled: bool = False,
) -> list[Event]:
    """Return the events of a perceptron that learns ten classes; ``before`` acts before a step.

    ``scaled``: a loss scaler makes the steps, and skips those whose gradients are not finite.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(),
        nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    teacher, data = torch.randn(20, 10), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    latest, norms = [], []
    with SNCallback(model, optimizer=optimizer, threshold=threshold, action="observe") as callback:
        for step in range(num_rows):
            x = torch.randn(64, 20, generator=data)
            y = targets((x @ teacher).argmax(1), step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs(x, step)), y)
            scaler.scale(loss).backward()
            before(model, optimizer, step)
            scaler.step(optimizer)
            scaler.update()
            norms.append([float(p.detach().norm()) for p in vectors(model)])
            callback.step(loss=loss)
            latest.append(callback.latest)
    latest.append(callback.latest)
    by_step = {row.step: row for row in latest if row.step > 0}
    return events([*by_step.values()], np.array(norms, np.float32)[: len(by_step)])


def vectors(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 1]


def events(latest: list, norms: np.ndarray) -> list[Event]:
    names = [*latest[0].names, *(f"vector.{i}" for i in range(norms.shape[1]))]
    columns = {}
    for metric in METRICS:
        more = norms if metric == "frobenius" else np.full(norms.shape, ABSENT)
        columns[metric] = np.concatenate(
            (np.stack([row.row(metric) for row in latest]), more), axis=1, dtype=np.float32
        )
    scalars = {
        name: np.array([row.scalars.get(name, 0.0) for row in latest], np.float32)
        for name in ("loss", "skipped_steps")
    }
    memory, found = Memory(), []
    for part in rows("r", names, [row.step for row in latest], columns, scalars, size=50):
        found += judge(memory, part).events
    return found


def shrinks(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step >= FAULT:
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(0.96)


def decays(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Shrink weights as strong but sound decay does: a hundredth of that fault."""
    for parameter in model.parameters():
        parameter.data.mul_(0.9998)


def gains_grow(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step >= FAULT:
        model[1].weight.data.mul_(1.015)


def forgotten(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Take the middle weight from the optimizer, although its gradient is there."""
    if step == FAULT:
        group = optimizer.param_groups[0]
        group["params"] = [p for p in group["params"] if p is not model[3].weight]


def freezes(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == FAULT:
        model[3].weight.requires_grad_(False)
        model[3].weight.grad = None


def spoilt(x: torch.Tensor, step: int) -> torch.Tensor:
    return torch.randn_like(x) if step >= 130 else x


@pytest.fixture(scope="module")
def healthy() -> list[Event]:
    return train()


def of(rule: str, found: list[Event]) -> list[Event]:
    return [event for event in found if event.rule == rule]


def test_a_healthy_training_raises_nothing(healthy):
    assert healthy == []


def test_inputs_that_turn_into_noise_give_progress_back():
    (event,) = of("loss_regain", train(inputs=spoilt))
    assert 131 < event.step <= 145
    assert "above its best" in event.message


def test_a_loss_whose_target_is_noise_from_the_start_gives_nothing_back():
    noise = torch.Generator().manual_seed(2)
    found = train(targets=lambda y, step: torch.randint(10, y.shape, generator=noise))
    assert not of("loss_regain", found)


def test_weights_that_shrink_are_told_and_sound_decay_is_not():
    (event,) = of("shrink", train(shrinks))
    assert FAULT < event.step < FAULT + 70
    assert not of("shrink", train(decays))


def test_gains_that_grow_are_told_by_name_and_those_of_a_healthy_run_are_not(healthy):
    (event,) = of("gain_growth", train(gains_grow))
    assert event.layer == "vector.1"
    assert FAULT < event.step < FAULT + 100
    assert not of("gain_growth", healthy)


def test_a_weight_that_the_optimizer_forgot_is_told_and_a_frozen_one_is_not():
    (event,) = of("unchanged", train(forgotten))
    assert (event.layer, event.value) == ("3.weight", 21)
    assert not of("unchanged", train(freezes))


def test_a_breach_that_goes_on_to_matter_is_critical_and_a_small_one_is_not():
    def grows(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step >= 130:
            for parameter in model.parameters():
                parameter.data.mul_(1.08)

    found = train(grows, threshold=5.0)
    (event,) = of("breach_far", found)
    (breach,) = of("breach", found)
    assert (breach.severity, event.severity) == ("warning", "critical")
    assert breach.step < event.step
    assert not of("breach_far", train(threshold=1.0))


def overflows(every: int) -> Change:
    def change(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step % every == 3:
            model[3].weight.grad[0, 0] = torch.inf

    return change


def test_a_scaler_that_goes_on_to_skip_steps_is_told_and_a_few_skipped_steps_are_not():
    found = train(overflows(4), num_rows=300, scaled=True)
    (event,) = of("skipped_steps", found)
    assert event.value > 0.1
    assert train(overflows(100), num_rows=300, scaled=True) == []
