"""Sigma of the optimizer's update, against a float64 SVD of what the weights have moved by."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.callback.monitor.update_norms import TURNS

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(80, 40), nn.Tanh(),
                         nn.Linear(40, 40), nn.Linear(40, 6, bias=False))  # fmt: skip


def spectral(difference: Tensor) -> float:
    return float(torch.linalg.matrix_norm(difference.double().flatten(1), ord=2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_spectral_norm_of_what_the_step_has_moved(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    signals = ("update_sigma",)
    callback = SNCallback(model, optimizer=optimizer, signals=signals, idle_every=1)
    weights = {x.name: model.get_parameter(x.name) for x in callback.layers.layers}
    met = set()
    for step in range(12):
        before = {k: w.detach().clone() for k, w in weights.items()}
        optimizer.zero_grad()
        model(torch.randn(16, 3, 12)).square().mean().backward()
        optimizer.step()
        callback._steps._collector.collect()
        row = callback._monitor.latest
        for layer, reading in row.items():
            if row.steps[row.names.index(layer)] != step + 1 or not _measured(callback, layer):
                continue
            met.add(layer)
            moved = spectral(weights[layer].detach() - before[layer])
            sigma = reading["sigma"]
            assert reading["update_sigma"] == pytest.approx(moved, rel=2e-2)
            assert reading["update_sigma_ratio"] == pytest.approx(moved / sigma, rel=2e-2)
            m, n = weights[layer].flatten(1).shape
            rms = moved / (m / n) ** 0.5
            assert reading["update_sigma_rms"] == pytest.approx(rms, rel=2e-2)
    callback.close()
    assert met == set(weights)


def _measured(callback: SNCallback, layer: str) -> bool:
    """Return whether the newest row has the layer's update: `latest` keeps older values."""
    turn = callback._monitor._signals._update_sigma._turn
    names = [x.name for x in callback.layers.layers]
    turns = min(TURNS, len(names))
    return names.index(layer) % turns == turn % turns


def test_an_optimizer_whose_step_is_not_known_has_none(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.RMSprop(model.parameters())
    with caplog.at_level(logging.WARNING, "snc"):
        callback = SNCallback(model, optimizer=optimizer, signals=("update_sigma",))
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    callback.close()
    assert callback.latest["weight"]["update_sigma"] is None
    assert "update_sigma needs SGD, Adam or AdamW" in caplog.text
