"""A model that changes under a callback: right numbers or a sentence, no error at each step."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from small_loops import grow, norms, sigmas, small_model, spectral_norm, train_step
from torch import nn
from torch.nn.utils import parametrize

from snc_client import SNCallback
from snc_client.callback.model.structure import MOST_APART, ModelStructure
from snc_client.sender import Sender


def steps(callback: SNCallback, count: int = 3) -> None:
    for _ in range(count):
        callback.step()


def test_a_module_that_is_removed_is_absent_said_once_and_listed_with_the_reason(caplog):
    model = small_model()
    callback = SNCallback(model, threshold=0.5, strict=True, certify_every=2)
    steps(callback)
    with caplog.at_level(logging.WARNING):
        del model[2]
        for _ in range(6):
            grow(model, 1.1)
            callback.step()
            assert spectral_norm(model[0].weight) <= 0.5
    assert callback.errors == 0
    assert sigmas(callback)["2.weight"] is None
    assert sum("2.weight" in message for message in caplog.messages) == 1
    assert [layer.name for layer in callback.layers.layers] == ["0.weight"]
    gone = {skipped.name: skipped.reason for skipped in callback.layers.skipped}
    assert gone["2.weight"] == "it is gone from the model"
    callback.close()


def test_a_module_that_returns_is_measured_again():
    model = small_model()
    callback = SNCallback(model, threshold=0.5)
    kept = model[2]
    model[2] = nn.Identity()
    steps(callback)
    assert sigmas(callback)["2.weight"] is None
    model[2] = kept
    grow(model, 3)
    callback.rescan()
    before = norms(model)["2.weight"]
    steps(callback, 1)
    assert norms(model)["2.weight"] <= 0.5
    callback.close()
    assert sigmas(callback)["2.weight"] == pytest.approx(before, rel=1e-3)


def test_a_new_module_is_measured_and_held_by_its_own_first_sigma():
    model = small_model()
    callback = SNCallback(model, threshold="1.5x init", strict=True)
    steps(callback)
    model.append(nn.Linear(6, 8))
    first = norms(model)
    coverage = callback.rescan()
    assert [layer.name for layer in coverage.layers] == ["0.weight", "2.weight", "3.weight"]
    for _ in range(3):
        callback.step()
        grow(model, 2)
    callback.step()
    assert callback.errors == 0
    for name, norm in norms(model).items():
        assert norm <= 1.5 * first[name] * (1 + 1e-3)
    callback.close()
    assert callback.latest["3.weight"]["threshold"] == pytest.approx(1.5 * first["3.weight"], 1e-3)


def test_a_new_module_is_found_at_the_next_step_and_reported(caplog, monkeypatch):
    model = small_model()
    callback = SNCallback(model, threshold=0.5, url="http://127.0.0.1:9", run="grows")
    callback.step()
    first = callback._connection._sender
    sent = []
    monkeypatch.setattr(Sender, "put", lambda self, step, values, *_: sent.append(values.shape[1]))
    model.append(nn.Linear(6, 8))
    with caplog.at_level(logging.WARNING):
        steps(callback, 3)
    assert sigmas(callback)["3.weight"] is not None
    assert spectral_norm(model[3].weight) <= 0.5
    assert sum("3.weight is new" in message for message in caplog.messages) == 1
    second = callback._connection._sender
    assert second is not first
    assert second.run == "grows"
    assert sent == [2, 3, 3], "the row of step 1 was measured before the module came"
    callback.close(timeout=0.2)


def test_a_weight_of_another_shape_is_held_by_a_new_reference(caplog):
    model = small_model()
    callback = SNCallback(model, threshold="1.5x init")
    steps(callback)
    model[2] = nn.Linear(24, 7)
    first = spectral_norm(model[2].weight)
    with caplog.at_level(logging.WARNING):
        steps(callback, 2)
    grow(model, 4)
    steps(callback, 2)
    assert callback.errors == 0
    assert callback.latest["2.weight"]["threshold"] == pytest.approx(1.5 * first, rel=1e-3)
    assert spectral_norm(model[2].weight) <= 1.5 * first * (1 + 1e-3)
    assert "2.weight had the shape (6, 24), it has (7, 24)" in caplog.text
    callback.close()


@pytest.mark.parametrize("strict", [False, True])
def test_a_fresh_module_of_the_same_shape_is_held_at_the_next_step_like_the_old(strict):
    model = small_model()
    callback = SNCallback(model, threshold="1.2x init", strict=strict)
    limit = 1.2 * spectral_norm(model[2].weight)
    steps(callback)
    model[2] = nn.Linear(24, 6)
    with torch.no_grad():
        model[2].weight.mul_(40)
    model(torch.randn(4, 12)).sum().backward()  # the old parameters are in no list of gradients
    callback.step()
    assert callback.errors == 0
    assert spectral_norm(model[2].weight) <= limit * (1 + 1e-3)
    callback.close()


@pytest.mark.parametrize("broken", [RuntimeError, KeyError, torch.cuda.OutOfMemoryError])
def test_a_signal_that_cannot_be_computed_does_not_stop_holding(broken, monkeypatch, caplog):
    model = small_model()
    callback = SNCallback(model, threshold=0.5)

    def fail(*_):
        raise broken("no norm")

    monkeypatch.setattr("snc_client.callback.monitor.norms.norms", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            grow(model, 3)
            callback.step()
            assert max(norms(model).values()) <= 0.5
    assert callback.errors == 0
    assert sum("no norm" in message for message in caplog.messages) == 1
    callback.close()


@pytest.mark.parametrize("strict", [False, True])
def test_another_tensor_or_module_in_the_same_place_is_measured_as_it_is(strict):
    model = small_model()
    callback = SNCallback(model, threshold={"0.*": 0.5, "2.*": 5.0}, strict=strict)
    steps(callback)
    model[2] = nn.Linear(24, 6)
    with torch.no_grad():
        model[2].weight.mul_(40)
    model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True)
    callback.step()
    assert callback.errors == 0
    assert norms(model)["0.weight"] <= 0.5
    if strict:  # else sigma may need a few steps: nothing foretold the leap
        assert norms(model)["2.weight"] <= 5.0
    steps(callback, 20)
    exact = norms(model)
    callback.close()
    assert sigmas(callback)["0.weight"] == pytest.approx(exact["0.weight"], rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_followed(dtype):
    model = small_model()
    callback = SNCallback(model, threshold=0.5, strict=True)
    steps(callback)
    model.to(dtype)
    grow(model, 3)
    steps(callback, 3)
    assert callback.errors == 0
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-6)
    callback.close()


def test_a_weight_that_becomes_computed_is_measured_and_not_written(caplog):
    model = small_model()
    callback = SNCallback(model, threshold=0.5)
    steps(callback)

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    stored = model[0].weight.detach().clone()
    parametrize.register_parametrization(model[0], "weight", Double())
    with caplog.at_level(logging.WARNING):
        steps(callback, 4)
    callback.close()
    assert callback.errors == 0
    assert "0.weight has changed: computed by the parametrization Double" in caplog.text
    assert sigmas(callback)["0.weight"] == pytest.approx(2 * spectral_norm(stored), rel=1e-3)
    assert torch.equal(model[0].parametrizations.weight.original, stored)
    assert callback.latest["0.weight"]["scale"] == 1.0


def test_a_weight_that_is_frozen_is_not_written_from_the_next_look_on():
    model = small_model()
    callback = SNCallback(model, threshold=0.5)
    model[0].weight.requires_grad_(False)
    callback.rescan()
    keep = model[0].weight.clone()
    steps(callback)
    callback.close()
    assert torch.equal(model[0].weight, keep)
    assert spectral_norm(keep) > 0.5


def test_a_model_that_loses_its_numbers_is_said_and_ends_no_training(caplog):
    model = small_model()
    callback = SNCallback(model, threshold=0.5)
    model.to("meta")
    with caplog.at_level(logging.WARNING):
        steps(callback, 5)
    callback.close()
    assert callback.errors == 0
    assert set(sigmas(callback).values()) == {None}
    assert "on the meta device: it holds no numbers" in caplog.text


def test_rows_on_their_way_survive_a_rescan():
    model = small_model()
    callback = SNCallback(model, action="stop", threshold=0.5)
    callback.step()  # its row is read at the next call
    model.append(nn.Linear(6, 8))
    callback.rescan()
    with pytest.raises(RuntimeError, match=r"sigma of [02]\.weight"):
        callback.step()
    assert sigmas(callback)["3.weight"] is None
    callback.close()


def test_a_state_saved_before_a_rescan_can_be_loaded_after_it():
    model = small_model()
    callback = SNCallback(model, threshold="1.5x init")
    steps(callback)
    state = callback.state_dict()
    model.append(nn.Linear(6, 8))
    callback.rescan()
    callback.load_state_dict(state)
    steps(callback)
    assert callback.errors == 0
    callback.close()


def changes() -> dict[str, Callable[[nn.Sequential], object]]:
    def exchange(model: nn.Sequential) -> None:
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())

    def resize(model: nn.Sequential) -> None:
        model[0].weight.data = torch.zeros(5, 12)

    return {
        "a new module": lambda model: model.append(nn.Linear(6, 8)),
        "a new module inside": lambda model: model[1].add_module("inner", nn.Linear(2, 2)),
        "a module less": lambda model: model.pop(2),
        "a fresh module": lambda model: model.__setitem__(2, nn.Linear(24, 6)),
        "another parameter": exchange,
        "another size": resize,
        "a frozen parameter": lambda model: model[0].weight.requires_grad_(False),
    }


@pytest.mark.parametrize("change", changes().values(), ids=changes())
def test_a_change_of_structure_is_seen_and_a_write_is_none(change):
    model = small_model()
    structure = ModelStructure(model)
    grow(model, 2)
    assert not structure.changed()
    change(model)
    assert structure.changed()
    structure.look()
    assert not structure.changed()


def test_a_model_that_exchanges_parameters_all_the_time_is_walked_ever_less_often():
    model = small_model()
    structure, walks = ModelStructure(model), 0
    for _ in range(1000):
        model[0].weight = nn.Parameter(model[0].weight.detach())
        if structure.changed():
            walks += 1
            structure.look(fruitless=True)
    assert 1000 / MOST_APART <= walks < 30


def test_a_model_with_a_lazy_module_has_a_structure():
    assert not ModelStructure(nn.Sequential(nn.LazyLinear(3))).changed()


def test_signals_and_guard_go_on_with_the_layers_of_now():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    callback = SNCallback(model, optimizer=optimizer, threshold="2x init", guard=True)
    for _ in range(3):
        train_step(model, optimizer)
    model.append(nn.Linear(6, 8))
    optimizer.add_param_group({"params": model[3].parameters()})
    callback.rescan()
    for _ in range(15):
        train_step(model, optimizer)
    exact = {name: float(w.grad.norm()) for name, w in model.named_parameters() if w.ndim == 2}
    callback.close()
    assert callback.errors == 0
    for name, norm in exact.items():
        assert callback.latest[name]["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert callback.latest[name]["guard"] is not None
