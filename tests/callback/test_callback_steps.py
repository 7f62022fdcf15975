"""What counts as a step where the loop calls step() itself, and which steps were skipped."""

from __future__ import annotations

import gc

import pytest
import torch
from small_loops import grow, norms, small_model
from torch import nn
from torch.optim import optimizer as hooks_of_all

from snc_client import SNCallback
from snc_client.callback.model.optimizer_steps import PATIENCE


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
    gc.collect()  # callbacks that other tests have left
    before = len(known)
    callback = SNCallback(small_model())
    assert len(known) == before + 1
    callback.close()
    SNCallback(small_model())  # nobody keeps it
    gc.collect()
    assert len(known) == before


def test_an_idle_optimizer_beside_a_loop_of_its_own_is_distrusted_in_the_end(caplog):
    model = small_model()
    torch.optim.SGD(model.parameters(), lr=0.1)  # kept alive by nobody: it says nothing
    idle = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = SNCallback(model, threshold=0.5)
    plain = Plain(model)
    for _ in range(PATIENCE + 5):
        model.zero_grad()
        backward(model, scale=50.0)
        plain.step()
        callback.step()
    assert idle.state == {}
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    assert "every call counts as one" in caplog.text
    callback.close()


class WithoutConstructor(torch.optim.Optimizer):
    """An optimizer that never calls torch's constructor, so that it has no hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": [*model.parameters()]}]
        self.plain = Plain(model)

    def step(self, closure=None) -> None:
        self.plain.step()


def test_an_optimizer_without_hooks_counts_at_every_call():
    model = small_model()
    optimizer = WithoutConstructor(model)
    callback = SNCallback(model, threshold=0.5)
    for _ in range(5):
        model.zero_grad()
        backward(model, scale=50.0)
        optimizer.step()
        callback.step()
        assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    assert steps_counted(callback) == 5
    callback.close()


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization in two half steps, as loops call it."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(0.05 * p.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    def step(self, closure=None) -> None:
        raise NotImplementedError


def test_two_half_steps_of_sam_are_one_held_step():
    model = small_model()
    optimizer = Sam(model.parameters(), lr=1.0)
    callback = SNCallback(model, optimizer=optimizer, threshold=0.5)
    for _ in range(5):
        for half in (optimizer.first_step, optimizer.second_step):
            model.zero_grad()
            backward(model)
            half()
        assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    assert steps_counted(callback) == 5
    callback.close()


def test_a_critic_that_is_frozen_while_the_generator_steps_is_held():
    critic, generator = small_model(), small_model()
    models = nn.ModuleDict({"critic": critic, "generator": generator})
    optimizers = [torch.optim.SGD(x.parameters(), lr=0.5) for x in (critic, generator)]
    callback = SNCallback(models, threshold=0.5)
    for _ in range(10):
        critic.requires_grad_(True)
        backward(critic)
        optimizers[0].step()
        critic.requires_grad_(False)
        backward(generator)
        optimizers[1].step()
        callback.step()
        assert max(norms(critic).values()) <= 0.5 * (1 + 1e-3)
        for each in optimizers:
            each.zero_grad()
    callback.close()


def test_a_layer_that_joins_the_optimizer_is_held_from_then_on():
    model = small_model()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    callback = SNCallback(model, optimizer=optimizer, threshold=0.5)
    optimizer.add_param_group({"params": model[2].parameters()})
    for _ in range(3):
        grow(model, 2)
        backward(model)
        optimizer.step()
        assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    callback.close()


def test_closing_inside_a_hook_does_not_break_the_optimizer():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = SNCallback(model, optimizer=optimizer)
    optimizer.register_step_post_hook(lambda *_: None)
    callback._connection.obey = callback.close
    backward(model)
    optimizer.step()
    optimizer.step()
    assert steps_counted(callback) == 1


def test_an_optimizer_of_another_shape_steps_undisturbed():
    callback = SNCallback(small_model())

    class Odd(torch.optim.Optimizer):
        def __init__(self) -> None:
            self.__dict__.update(torch.optim.SGD([torch.ones(1)], lr=0.1).__dict__)
            self.param_groups = [{"weights": []}]

        def step(self, closure=None) -> str:
            return "stepped"

    assert Odd().step() == "stepped"
    callback.close()
