"""Ownership: a hook writes only what its own optimizer steps; copies of a callback do nothing."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

from snc_client import GuardSettings, SNCallback
from snc_client.callback.detached import DetachedCallback
from snc_client.callback.model.optimizers import unwrapped_all


def norm(weight: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(weight.detach().double(), 2).item()


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 4))


def adamw(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=5e-2)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    (model(torch.randn(16, 16)) - 3).square().mean().backward()


@pytest.mark.parametrize("strict", [False, True])
def test_each_layer_is_held_after_the_step_of_its_own_optimizer(strict):
    model = two_layers()
    first, second = adamw(model[0]), adamw(model[2])
    limits = [1.1 * norm(model[0].weight), 1.1 * norm(model[2].weight)]
    optimizers = [first, second]
    callback = SNCallback(model, optimizer=optimizers, threshold="1.1x init", strict=strict)
    for step in range(1, 31):
        backward(model)
        first.step()
        assert norm(model[0].weight) <= 1.001 * limits[0], step
        second.step()
        assert norm(model[2].weight) <= 1.001 * limits[1], step
    assert callback.state_dict()["step"] == 30, "the first optimizer counts the steps"
    callback.close()
    assert callback.errors == 0
    for name, layer in (("0.weight", model[0]), ("2.weight", model[2])):
        found = callback.latest[name]
        assert found["sigma"] * found["scale"] == pytest.approx(norm(layer.weight), rel=2e-3)


def test_a_step_writes_nothing_that_its_optimizer_does_not_step():
    model = two_layers()
    first, second = adamw(model[0]), adamw(model[2])
    callback = SNCallback(model, optimizer=[first, second], threshold=0.1)
    for _ in range(3):
        backward(model)
        others = model[2].weight.detach().clone()
        first.step()
        assert torch.equal(model[2].weight, others)
        others = model[0].weight.detach().clone()
        second.step()
        assert torch.equal(model[0].weight, others)
    assert callback.errors == 0


def test_a_gan_in_the_usual_order_trains_and_both_networks_are_held():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    critic = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    of_generator, of_critic = adamw(generator), adamw(critic)
    callback = SNCallback(model, optimizer=[of_critic, of_generator], threshold="1.1x init")
    for _ in range(20):
        fake, real = generator(torch.randn(32, 8)), torch.randn(32, 16) + 2
        of_critic.zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean()).backward()
        of_critic.step()
        of_generator.zero_grad()
        (-critic(fake).mean()).backward()  # the generator must be as it was in its forward pass
        of_generator.step()
    assert callback.errors == 0
    callback.close()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert norm(parameter) <= 1.001 * callback.latest[name]["threshold"], name


def test_layers_that_no_given_optimizer_steps_are_measured_and_named(caplog):
    model = two_layers()
    first = adamw(model[0])
    before = model[2].weight.detach().clone()
    with caplog.at_level(logging.WARNING, "snc"):
        callback = SNCallback(model, optimizer=first, threshold=0.01)
    assert "2.weight" in caplog.text
    assert "0.weight" not in caplog.text
    backward(model)
    first.step()
    callback.close()
    assert torch.equal(model[2].weight, before)
    assert callback.latest["2.weight"]["sigma"] == pytest.approx(norm(before), rel=1e-3)
    assert norm(model[0].weight) <= 0.01 * 1.001


def test_an_optimizer_of_copies_holds_every_layer():
    model = two_layers()
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(copies, lr=0.0)
    callback = SNCallback(model, optimizer=optimizer, threshold=0.01)
    optimizer.step()
    callback.close()
    assert norm(model[2].weight) <= 0.01 * 1.001


def test_a_guard_needs_one_optimizer():
    model = two_layers()
    with pytest.raises(ValueError, match="optimizer must be a single one with guard"):
        SNCallback(model, optimizer=[adamw(model[0]), adamw(model[2])], guard=GuardSettings())


def test_optimizers_are_found_in_sequences_and_containers():
    class Container:
        def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
            self.optimizers = list(optimizers)

    model = two_layers()
    first, second = adamw(model[0]), adamw(model[2])
    assert unwrapped_all(None) == ()
    assert unwrapped_all(first) == (first,)
    assert unwrapped_all([first, (second,)]) == (first, second)
    assert unwrapped_all(Container(first, second)) == (first, second)
    with pytest.raises(ValueError, match=r"must be a torch\.optim\.Optimizer, got str"):
        SNCallback(model, optimizer=[first, "second"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_callback_measures_nothing_and_says_so_once(copied, caplog):
    model = two_layers()
    callback = SNCallback(model, threshold=0.5)
    twin = copied(callback)
    assert isinstance(twin, DetachedCallback)
    before = model[0].weight.detach().clone()
    with caplog.at_level(logging.WARNING, "snc"), twin:
        twin.step(loss=1.0)
        twin.step()
        twin.close(failed=True)
    assert caplog.text.count("measures nothing") == 1
    assert torch.equal(model[0].weight, before)
    assert (dict(twin.latest), twin.state_dict(), len(twin.layers.layers)) == ({}, {}, 0)
    callback.step()
    assert norm(model[0].weight) <= 0.5 * 1.001, "the original continues"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by importing the compiler
def test_a_compiled_optimizer_step_is_measured_at_every_step():
    model = two_layers()
    optimizer = adamw(model)
    callback = SNCallback(model, threshold="1.1x init", optimizer=optimizer)
    step = torch.compile(optimizer.step, fullgraph=False, backend="eager")
    for _ in range(8):
        backward(model)
        step()
    assert (callback.state_dict()["step"], callback.errors) == (8, 0)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("saved_wrapped", [True, False])
def test_a_state_fits_whatever_wrapped_the_model_when_it_was_saved(prefix, saved_wrapped, caplog):
    model = two_layers()
    reference = norm(model[0].weight)
    state = SNCallback(model, threshold="1.1x init").state_dict()
    if saved_wrapped:
        state["layers"] = {prefix + name: each for name, each in state["layers"].items()}
    resumed: nn.Module = two_layers()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.mul_(3.0)
    if not saved_wrapped:
        for part in reversed(prefix.rstrip(".").split(".")):
            wrapper = nn.Module()
            wrapper.add_module(part, resumed)
            resumed = wrapper
    callback = SNCallback(resumed, threshold="1.1x init")
    with caplog.at_level(logging.WARNING, "snc"):
        callback.load_state_dict(state)
    assert not caplog.text
    callback.step()
    callback.close()
    assert callback.latest["0.weight"]["threshold"] == pytest.approx(1.1 * reference, rel=1e-3)


def test_names_of_a_state_that_the_model_lacks_are_logged(caplog):
    model = two_layers()
    state = SNCallback(model, threshold="1.1x init").state_dict()
    state["layers"]["gone.weight"] = state["layers"].pop("0.weight")
    callback = SNCallback(model, threshold="1.1x init")
    with caplog.at_level(logging.WARNING, "snc"):
        callback.load_state_dict(state)
    assert "not in the state: 0.weight; not in the model: gone.weight" in caplog.text


def test_an_optimizer_of_other_parameters_of_the_model_owns_no_matrix(caplog):
    model = two_layers()
    biases = torch.optim.SGD([model[0].bias, model[2].bias], lr=0.1)
    before = model[0].weight.detach().clone()
    with caplog.at_level(logging.WARNING, "snc"):
        callback = SNCallback(model, optimizer=biases, threshold=0.01)
    backward(model)
    biases.step()
    callback.close()
    assert torch.equal(model[0].weight, before)
    assert "0.weight, 2.weight" in caplog.text


def test_what_is_held_before_the_first_counted_step_is_not_in_the_row_of_step_0():
    model = two_layers()
    first, second = adamw(model[0]), adamw(model[2])
    callback = SNCallback(model, optimizer=[first, second], threshold="1.1x init")
    untouched = norm(model[2].weight)
    backward(model)
    second.step()
    assert norm(model[2].weight) <= 1.1 * 1.001 * untouched
    callback.close()
    assert callback.latest.step == 0
    assert callback.latest["2.weight"]["sigma"] == pytest.approx(untouched, rel=1e-3)


def test_low_precision_layers_of_a_second_optimizer_are_not_taken_for_copies(caplog):
    model = two_layers().bfloat16()
    first, second = adamw(model[0]), adamw(model[2])
    with caplog.at_level(logging.WARNING, "snc"):
        callback = SNCallback(model, optimizer=[first, second], threshold="1.1x init")
        model(torch.randn(16, 16, dtype=torch.bfloat16)).square().mean().backward()
        first.step()
        second.step()
    callback.close()
    assert callback.errors == 0
    assert "master" not in caplog.text
