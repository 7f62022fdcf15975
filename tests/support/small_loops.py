"""A small model, its exact spectral norms, and what a training step does to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snc_client import SNCallback


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))


def spectral_norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2))


def norms(model: nn.Module) -> dict[str, float]:
    return {name: spectral_norm(w) for name, w in model.named_parameters() if w.ndim >= 2}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    loss = model(torch.randn(16, 12)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def grow(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(factor)


def sigmas(callback: SNCallback) -> dict[str, float | None]:
    return {name: reading["sigma"] for name, reading in callback.latest.items()}


def thresholds(callback: SNCallback) -> dict[str, float | None]:
    return {name: reading["threshold"] for name, reading in callback.latest.items()}
