"""The scalar `lipschitz`: the certified bound of the network, in evaluation mode."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from snc_client import SNCallback, lipschitz_bound
from snc_client.callback.schedule import network_bound
from snc_client.callback.schedule.network_bound import LEAST_STEPS, NetworkBound

SIGNALS = ("loss", "lipschitz")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_the_first_row_has_the_bound_of_the_weights_at_that_step() -> None:
    model = network()
    with SNCallback(model, signals=SIGNALS, example_input=torch.ones(2, 6)) as callback:
        callback.step(loss=1.0)
    scalars = callback.latest.scalars
    assert model.training
    assert model[2].training
    expected = lipschitz_bound(model.eval(), torch.ones(2, 6)).bound
    assert scalars["lipschitz"] == pytest.approx(expected, rel=1e-6)


def test_each_of_several_models_has_its_scalar() -> None:
    models = {"critic": nn.Linear(4, 1), "generator": nn.Linear(3, 4)}
    examples = {"critic": torch.ones(1, 4)}
    with SNCallback(models, signals=SIGNALS, example_input=examples) as callback:
        callback.step()
    assert "lipschitz_critic" in callback.latest.scalars
    assert "lipschitz_generator" not in callback.latest.scalars


def test_a_network_without_a_bound_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    bound = NetworkBound({"lipschitz": (model, torch.ones(2, 6))})
    bound._next_step = 0
    with caplog.at_level(logging.WARNING, "snc"):
        assert bound.at(0) == {}
        bound._next_step, bound._next_time = 0, 0.0
        assert bound.at(1) == {}
    (record,) = caplog.records
    assert "1: native_layer_norm of LayerNorm" in record.getMessage()


def test_a_forward_pass_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "snc"),
        SNCallback(network(), signals=SIGNALS, example_input=torch.ones(2, 99)) as callback,
    ):
        callback.step(loss=1.0)
    assert callback.errors == 0
    assert "lipschitz is not reported" in caplog.text


def test_the_next_one_waits_until_it_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(model: nn.Module, example: torch.Tensor) -> object:
        clock[0] += 2.0
        return lipschitz_bound(model, example)

    monkeypatch.setattr(network_bound.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(network_bound, "lipschitz_bound", slow)
    bound = NetworkBound({"lipschitz": (nn.Linear(2, 2), torch.ones(1, 2))})
    assert bound.at(1)
    clock[0] += 199.0
    assert not bound.at(2 * LEAST_STEPS)
    clock[0] += 1.5
    assert not bound.at(LEAST_STEPS)
    assert bound.at(1 + LEAST_STEPS)


@pytest.mark.parametrize("example", [None, {"a": torch.ones(1)}])
def test_the_signal_needs_an_example(example: object) -> None:
    model = {"critic": nn.Linear(4, 1)} if example else nn.Linear(4, 1)
    with pytest.raises(ValueError, match="example_input must"):
        SNCallback(model, signals=SIGNALS, example_input=example)  # type: ignore[arg-type]
