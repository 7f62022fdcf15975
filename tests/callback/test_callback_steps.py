"""What counts as a step where the loop calls step() itself, and which steps were skipped."""

from __future__ import annotations

import pytest
import torch
from small_loops import grow, norms, small_model
from torch import nn
from torch.optim import optimizer as hooks_of_all

from snc_client import SNCallback


class Plain:
    """An optimizer that torch does not know, and that leaves no trace on version counters."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def step(self) -> None:
        for parameter in self._model.parameters():
            parameter.data = parameter.data - 0.01 * parameter.grad


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (scale * (model(torch.randn(8, 12)) - 3).square().mean()).backward()


def steps_counted(callback: SNCallback) -> int:
    return callback.state_dict()["step"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zeroed_first", [False, True])
def test_a_minibatch_in_parts_is_one_step_and_no_skipped_one(fused, zeroed_first):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    callback = SNCallback(model, threshold="1.1x init")
    for part in range(1, 25):
        backward(model)
        if part % 4 == 0:
            optimizer.step()
            if zeroed_first:
                optimizer.zero_grad()
        callback.step(loss=1.0 * part)
        if part % 4 == 0 and not zeroed_first:
            optimizer.zero_grad()
    assert steps_counted(callback) == 6
    callback.close()
    assert callback.latest.step == 6
    assert callback.latest.scalars["loss"] == 24.0
    assert "skipped_steps" not in callback.latest.scalars


def test_steps_that_a_scaler_skips_are_not_counted_and_are_told_as_skipped():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    callback, skipped = SNCallback(model), 0
    for _ in range(40):
        optimizer.zero_grad()
        scaler.scale((model(torch.randn(8, 12)) * 1e3).square().sum()).backward()
        scaler.unscale_(optimizer)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        callback.step()
    assert 0 < skipped < 40, "or this test says nothing"
    assert steps_counted(callback) == 40 - skipped
    callback.close()
    assert callback.latest.scalars["skipped_steps"] == skipped


def test_with_a_hook_the_steps_that_a_scaler_skips_are_told_too():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    callback = SNCallback(model, optimizer=optimizer)
    for step in range(12):
        optimizer.zero_grad()
        backward(model)
        if step % 3:
            optimizer.step()
        callback.step(loss=float(step))
    assert steps_counted(callback) == 8
    callback.close()
    assert callback.latest.scalars["skipped_steps"] == 4
    assert callback.latest.scalars["loss"] == 11.0


@pytest.mark.parametrize("other_optimizer", [False, True])
def test_weights_that_change_without_a_trace_are_held_at_every_call(other_optimizer):
    model, other = small_model(), small_model()
    if other_optimizer:  # of another model: it says nothing of this one
        stepping = torch.optim.SGD(other.parameters(), lr=0.1)
    callback = SNCallback(model, threshold=0.5)
    plain = Plain(model)
    for _ in range(10):
        model.zero_grad()
        backward(model, scale=50.0)
        plain.step()
        if other_optimizer:
            backward(other)
            stepping.step()
        callback.step()
        assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    assert steps_counted(callback) == 10
    callback.close()


def test_a_write_by_hand_is_a_step_though_the_optimizer_was_silent():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    callback = SNCallback(model, threshold=0.5)
    backward(model)
    optimizer.step()
    callback.step()
    callback.step()
    assert steps_counted(callback) == 1
    grow(model, 3)
    callback.step()
    assert steps_counted(callback) == 2
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    callback.close()


def test_the_hook_on_every_optimizer_goes_with_the_callback():
    known = hooks_of_all._global_optimizer_post_hooks
    before = len(known)
    callback = SNCallback(small_model())
    assert len(known) == before + 1
    callback.close()
    SNCallback(small_model())  # nobody keeps it
    assert len(known) == before
