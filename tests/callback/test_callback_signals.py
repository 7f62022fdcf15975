"""Signals beside sigma: norms of weights, gradients and updates, against float64 and real steps."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from no_host_sync import NoHostSync
from small_loops import norms, small_model
from torch import nn

from snc_client import SNCallback
from snc_client.callback.monitor.norms import ALL_SIGNALS
from snc_client.callback.monitor.update_norms import _bias
from snc_client.estimator.frobenius import norms as norms_of

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, dampening=0.2),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True, maximize=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "adamw, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    (factor * model(torch.randn(16, 12)).square().mean()).backward()
    optimizer.step()


def column(callback: SNCallback, metric: str) -> dict[str, float | None]:
    return {name: reading[metric] for name, reading in callback.latest.items()}


def frobenius(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().norm())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_norm_is_that_of_the_difference_of_the_weights(name):
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    callback = SNCallback(model, optimizer=optimizer, signals=("update_norm",), threshold="1x init")
    for k in range(5):
        copied = copy.deepcopy(model)
        plain = OPTIMIZERS[name](copied.parameters())
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        old = {n: p.detach().clone() for n, p in copied.named_parameters()}
        torch.manual_seed(k)
        train(copied, plain, 10.0**k)
        torch.manual_seed(k)
        train(model, optimizer, 10.0**k)
        callback._steps._collector.collect()
        moved = {n: frobenius(p.detach() - old[n]) for n, p in copied.named_parameters()}
        got = column(callback, "update_norm")
        assert got == pytest.approx({n: moved[n] for n in got}, rel=1e-4)
    callback.close()


def test_norms_of_weight_and_gradient_and_the_stable_rank_match_float64():
    model = small_model()
    with SNCallback(model, threshold=0.5) as callback:
        model(torch.randn(16, 12)).square().mean().backward()
        weights = {n: frobenius(p) for n, p in model.named_parameters() if p.ndim == 2}
        sigma = norms(model)
        callback.step()
    gradients = {n: frobenius(p.grad) for n, p in model.named_parameters()}
    assert column(callback, "frobenius") == pytest.approx(weights, rel=1e-6)  # before the action
    assert column(callback, "grad_norm") == pytest.approx(
        {n: gradients[n] for n in weights}, rel=1e-6
    )
    ranks = {n: (weights[n] / sigma[n]) ** 2 for n in weights}
    assert column(callback, "stable_rank") == pytest.approx(ranks, rel=1e-3)
    total = math.hypot(*gradients.values())
    assert callback.latest.scalars["grad_norm"] == pytest.approx(total, rel=1e-6)
    assert set(column(callback, "update_norm").values()) == {None}


def test_parts_of_a_fused_weight_have_their_own_norms():
    model = nn.MultiheadAttention(8, 2)
    with SNCallback(model) as callback:
        x = torch.randn(5, 3, 8)
        model(x, x, x)[0].square().mean().backward()
        callback.step()
    for k, part in enumerate("qkv"):
        rows = slice(8 * k, 8 * k + 8)
        reading = callback.latest[f"in_proj_weight[{part}]"]
        assert reading["frobenius"] == pytest.approx(frobenius(model.in_proj_weight[rows]))
        assert reading["grad_norm"] == pytest.approx(
            frobenius(model.in_proj_weight.grad[rows]), rel=1e-5, abs=1e-12
        )


def test_gradients_that_are_gone_or_zeroed_are_absent_and_it_is_said_once(caplog):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SNCallback(model) as callback, caplog.at_level(logging.WARNING):
        for to_none in (True, True, False):
            train(model, optimizer)
            optimizer.zero_grad(set_to_none=to_none)
            callback.step()
            callback._steps._collector.collect()
            assert set(column(callback, "grad_norm").values()) == {None}
            assert "grad_norm" not in callback.latest.scalars
    assert sum("grad_norm" in message for message in caplog.messages) == 1
    assert callback.errors == 0


def test_a_gradient_that_is_not_finite_is_a_measurement():
    model = small_model()
    model(torch.randn(16, 12)).square().mean().backward()
    model[0].weight.grad[0, 0] = math.nan
    with SNCallback(model) as callback:
        callback.step()
    assert math.isnan(callback.latest["0.weight"]["grad_norm"])
    assert math.isnan(callback.latest.scalars["grad_norm"])


def test_an_optimizer_whose_step_is_not_known_has_no_update_norm(caplog):
    model = small_model()
    optimizer = torch.optim.RMSprop(model.parameters())
    with caplog.at_level(logging.WARNING):
        callback = SNCallback(model, optimizer=optimizer, signals=("update_norm",))
    train(model, optimizer)
    callback.close()
    assert set(column(callback, "update_norm").values()) == {None}
    assert any("RMSprop" in message for message in caplog.messages)


def test_a_computed_weight_has_a_frobenius_norm_but_no_gradient_of_its_own():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    model(torch.randn(4, 6)).sum().backward()
    with SNCallback(model) as callback:
        callback.step()
    (reading,) = callback.latest.values()
    assert reading["frobenius"] == pytest.approx(frobenius(model.weight))
    assert reading["grad_norm"] is None


def test_a_zero_weight_has_the_stable_rank_zero():
    model = small_model()
    nn.init.zeros_(model[0].weight)
    with SNCallback(model) as callback:
        callback.step()
    assert callback.latest["0.weight"]["stable_rank"] == 0


def test_what_is_switched_off_is_neither_measured_nor_sent():
    model = small_model()
    model(torch.randn(16, 12)).square().mean().backward()
    with SNCallback(model, signals=()) as callback:
        callback.step(loss=1.0, lr=0.5, accuracy=0.25)
    own = ("sigma", "threshold", "scale", "residual", "sigma_upper")
    assert callback.latest.metrics == (*own, "certified_age", "bound_age")
    sent = callback._steps._signals.wanted(callback.latest.scalars)
    assert sent == {"accuracy": 0.25}


def test_all_signals_together_wait_for_nothing():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    callback = SNCallback(model, optimizer=optimizer, signals=ALL_SIGNALS)
    train(model, optimizer)
    with NoHostSync():
        callback._stepped(0)
    assert callback.errors == 0
    callback.close()


@pytest.mark.parametrize("signals", [("sigma",), "frobenius", ("grad_norm", "nope")])
def test_unknown_signals_are_refused(signals):
    with pytest.raises(ValueError, match="signals must be"):
        SNCallback(small_model(), signals=signals)


@pytest.mark.parametrize("shape", [(4096, 512), (60_000, 64), (512, 256, 3, 3)])
def test_norms_of_large_weights_do_not_lose_digits_in_a_long_sum(shape):
    """One float32 sum over these loses up to 2 %."""
    for weight in (torch.full(shape, 0.1), torch.randn(shape)):
        exact = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
        (found,) = norms_of([weight])
        assert float(found) == pytest.approx(exact, rel=2e-5)


def test_norms_of_mixed_tensors_keep_their_order():
    tensors = [torch.ones(3), torch.full((1024, 1024), 2.0), torch.ones(2, 2).double()]
    assert [float(x) for x in norms_of(tensors)] == [pytest.approx(3**0.5), 2048.0, 2.0]


def test_the_bias_correction_of_adam_keeps_its_digits_where_beta_is_near_one():
    """In float32 the logarithm of 0.999999 is off by 2 %."""
    steps = torch.tensor([1.0, 10.0, 1000.0])
    found = _bias(0.999999, steps).double()
    exact = 1 - 0.999999 ** steps.double()
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)
    assert _bias(0.0, steps).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("profile", [None, "moving_target"])
def test_a_job_declares_its_profile_in_each_row(profile):
    model = nn.Linear(4, 3)
    with SNCallback(model, profile=profile) as callback:
        for _ in range(4):
            callback.step(loss=1.0)
        declared = callback.latest.scalars.get("moving_target")
    assert declared == (None if profile is None else 1.0)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile must be 'moving_target' or None, got 'gan'"):
        SNCallback(nn.Linear(4, 3), profile="gan")
