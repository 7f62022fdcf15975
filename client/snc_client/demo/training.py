"""One training with one fault of `faults`, from some step on.

Nothing else differs between the observed and the constrained run: same seed, same minibatches, same
fault; remove the threshold and the damage is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import Action
from snc_client.callback import SNCallback
from snc_client.demo.faults import DEFAULT_FAULT, FAULTS, LEARNING_RATE
from snc_client.demo.model import CharTransformer
from snc_client.demo.text import VOCABULARY, minibatches

# No layer reaches its threshold before the fault: `down` grows to 4.4 times its first sigma in
# healthy training, the others to 2.8 times. The embeddings and the head are observed.
THRESHOLD = {"*.down.weight": "6x init", "blocks.*": "3x init"}
CHECK_EVERY = 25  # steps between exact checks by float64 SVD


@dataclass(frozen=True)
class Recipe:
    """The settings of both runs; the fault begins at ``fault_step``, counted from 1."""

    steps: int = 450
    fault_step: int = 150
    batch_size: int = 24
    context: int = 64
    width: int = 128
    heads: int = 4
    depth: int = 3
    seed: int = 0
    fault: str = DEFAULT_FAULT

    def as_config(self) -> dict[str, Any]:
        """Return the configuration that the run's page shows."""
        return {
            "model": f"character transformer, depth {self.depth}, width {self.width}",
            "data": "source of Python's standard library",
            "optimizer": f"AdamW, lr {LEARNING_RATE:g}",
            "fault": f"{FAULTS[self.fault].summary}, from step {self.fault_step}",
            "steps": self.steps,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Trained:
    """The result of a run: the mean loss of its last 30 steps, and exact checks of its weights."""

    run: str
    loss: float
    loss_before_fault: float
    layers: int
    worst_ratio: float  # largest spectral norm / threshold over the checked steps, float64 SVD
    overhead: float  # fraction of step time
    dropped_values: int


def train(
    recipe: Recipe,
    tokens: Tensor,
    *,
    action: Action,
    url: str,
    run: str,
    progress: Callable[[int, float], None],
) -> Trained:
    """Train on ``tokens`` for ``recipe.steps`` steps; call ``progress`` with (step, loss)."""
    torch.manual_seed(recipe.seed)
    model = CharTransformer(VOCABULARY, recipe.context, recipe.width, recipe.heads, recipe.depth)
    optimizer = _optimizer(model)
    data = minibatches(
        tokens, batch_size=recipe.batch_size, context=recipe.context, seed=recipe.seed
    )
    losses: list[float] = []
    worst_ratio = 0.0
    with SNCallback(
        model,
        threshold=THRESHOLD,
        action=action,
        url=url,
        run=run,
        name=f"demo, {'observed' if action == 'observe' else 'constrained'}",
        project="demo",
        config=recipe.as_config(),
        # By default a CPU measures layers far from their threshold every fifth step, and one that
        # leaps in between is held up to four steps late.
        idle_every=1,
    ) as callback:
        for step in range(recipe.steps):
            inputs, targets = next(data)
            if step + 1 == recipe.fault_step:
                FAULTS[recipe.fault].start(model, optimizer)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
            optimizer.step()
            callback.step(loss=loss, lr=optimizer.param_groups[1]["lr"])
            losses.append(float(loss.detach()))
            progress(step + 1, losses[-1])
            if (step + 1) % CHECK_EVERY == 0:
                worst_ratio = max(worst_ratio, exact_worst_ratio(callback))
    return Trained(
        run=run,
        loss=_mean(losses[-30:]),
        loss_before_fault=_mean(losses[: recipe.fault_step - 1][-30:]),
        layers=len(callback.layers.layers),
        worst_ratio=worst_ratio,
        overhead=callback.overhead,
        dropped_values=callback.dropped_values,
    )


def exact_worst_ratio(callback: SNCallback) -> float:
    """Return the largest spectral norm / threshold of the layers as they are, by float64 SVD."""
    worst = 0.0
    for layer in callback.layers.layers:
        threshold = callback.latest[layer.name].get("threshold")
        if threshold is not None and math.isfinite(threshold):
            norm = torch.linalg.matrix_norm(layer.weight().detach().double(), 2)
            worst = max(worst, float(norm) / threshold)
    return worst


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    hot: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (hot if ".query." in name or ".key." in name else rest).append(parameter)
    return torch.optim.AdamW([{"params": rest}, {"params": hot}], lr=LEARNING_RATE)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
