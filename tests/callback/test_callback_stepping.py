"""Whether only a step has written a parameter: each other writer leaves a trace, or is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snc_client.callback.monitor.write_tracker import WriteTracker


def settings(**more):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **more)
    steps = WriteTracker(optimizer)
    optimizer.register_step_post_hook(lambda *_: None)  # the callback's own
    return model, optimizer, steps


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_one_step_since_the_last_look_is_only_a_step():
    model, optimizer, steps = settings()
    for _ in range(3):
        steps.note(model.parameters())
        step(model, optimizer)
        assert steps.moved(model.weight)
        assert steps.moved(model.bias)


def test_two_steps_are_more_than_one():
    model, optimizer, steps = settings()
    steps.note(model.parameters())
    step(model, optimizer)
    step(model, optimizer)
    assert not steps.moved(model.weight)


def test_before_it_has_looked_nothing_is_known_nor_of_what_it_did_not_look_at():
    model, optimizer, steps = settings()
    step(model, optimizer)
    assert not steps.moved(model.weight)
    steps.note([model.bias, None])
    step(model, optimizer)
    assert steps.moved(model.bias)
    assert not steps.moved(model.weight)
    assert not steps.moved(None)


@pytest.mark.parametrize("when", ["before the step", "after it"])
def test_a_write_of_somebody_else_is_seen(when):
    model, optimizer, steps = settings()
    steps.note(model.parameters())
    if when == "before the step":
        with torch.no_grad():
            model.weight.mul_(2)
    step(model, optimizer)
    if when == "after it":
        with torch.no_grad():
            model.weight.mul_(2).mul_(2)
    assert not steps.moved(model.weight)
    assert steps.moved(model.bias)


def test_another_tensor_in_its_place_is_not_the_one_that_was_noted():
    model, optimizer, steps = settings()
    steps.note(model.parameters())
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    step(model, optimizer)
    assert not steps.moved(model.weight)


def test_other_memory_behind_the_same_parameter_is_seen():
    model, optimizer, steps = settings()
    steps.note(model.parameters())
    model.weight.data = model.weight.data.clone()
    step(model, optimizer)
    assert not steps.moved(model.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_more_than_a_step_is_worth(dtype):
    model, optimizer, steps = settings()
    model.to(dtype)
    steps.note(model.parameters())
    optimizer.zero_grad()
    model(torch.ones(2, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    assert not steps.moved(model.weight)


@pytest.mark.parametrize("more", [{"momentum": 0.9, "nesterov": True}, {"weight_decay": 6.0}])
def test_terms_that_may_cancel_say_nothing_of_a_steps_norm(more):
    model, optimizer, steps = settings(**more)
    steps.note(model.parameters())
    step(model, optimizer)
    assert not steps.moved(model.weight)


def test_another_hook_might_write_within_the_step():
    model, optimizer, steps = settings()
    hook = optimizer.register_step_pre_hook(lambda *_: None)
    steps.note(model.parameters())
    step(model, optimizer)
    assert not steps.moved(model.weight)
    hook.remove()
    assert steps.moved(model.weight)


def test_a_parameter_that_is_gone_is_not_kept_alive_and_the_hook_goes_with_close():
    model, optimizer, steps = settings()
    steps.note([nn.Parameter(torch.ones(2))])
    step(model, optimizer)
    steps.close()
    steps.note(model.parameters())
    step(model, optimizer)
    assert not steps.moved(model.weight), "nobody looked before the step"
