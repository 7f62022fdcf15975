"""SNCallback in a training loop: what it measures and what it holds."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from small_loops import grow, norms, sigmas, small_model, spectral_norm, thresholds, train_step
from torch import nn

from snc_client import SNCallback, ThresholdBreached

# Measuring


def test_sigma_is_the_spectral_norm_before_the_action():
    model = small_model()
    with SNCallback(model, threshold=0.5) as callback:
        before = norms(model)
        callback.step()
    assert sigmas(callback) == pytest.approx(before, rel=1e-4)
    assert max(norms(model).values()) <= 0.5


def test_a_measurement_reaches_the_host_at_the_next_call():
    callback = SNCallback(small_model())
    assert len(callback.latest) == 0
    callback.step()
    assert callback.latest.step == 0  # the untouched weights, measured at construction
    assert thresholds(callback) == {"0.weight": None, "2.weight": None}
    callback.step()
    assert callback.latest.step == 1
    callback.close()
    assert callback.latest.step == 2


def test_every_measures_and_acts_at_every_so_many_steps():
    model = small_model()
    callback = SNCallback(model, threshold=0.5, every=3)
    callback.step()
    callback.step()
    assert max(norms(model).values()) > 0.5
    callback.step()
    assert max(norms(model).values()) <= 0.5
    callback.close()
    assert callback.latest.step == 3


def test_the_loss_may_stay_a_tensor_and_rides_along():
    with SNCallback(small_model()) as callback:
        loss = torch.tensor(0.75, requires_grad=True) * 1
        callback.step(loss=loss, lr=0.1, accuracy=torch.tensor([7], dtype=torch.int64))
        loss.detach().zero_()  # what was handed over does not change afterwards
    scalars = callback.latest.scalars
    assert scalars["loss"] == 0.75
    assert scalars["accuracy"] == 7.0
    assert scalars["lr"] == 0.1
    assert scalars["callback_seconds"] > 0


def test_what_is_no_scalar_is_left_out_and_named_once(caplog):
    with SNCallback(small_model(), threshold=0.5) as callback, caplog.at_level(logging.WARNING):
        for _ in range(2):
            callback.step(loss=torch.zeros(3), Bad=1.0, text="no", none=None)
    assert callback.errors == 0
    assert not {"loss", "Bad", "text", "none"} & set(callback.latest.scalars)
    assert sum("'loss'" in message for message in caplog.messages) == 1
    assert max(reading["scale"] for reading in callback.latest.values()) <= 1


def test_the_largest_learning_rate_of_the_optimizer_is_reported():
    model = small_model()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    with SNCallback(model, optimizer=optimizer) as callback:
        train_step(model, optimizer)
    assert callback.latest.scalars["lr"] == 0.1


def test_a_learning_rate_that_is_a_tensor_is_not_read_on_the_host():
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25), foreach=False)
    with SNCallback(model, optimizer=optimizer) as callback:
        train_step(model, optimizer)
    assert callback.latest.scalars["lr"] == 0.25


def test_layers_are_held_where_the_optimizer_has_no_learning_rate():
    """Such as a class that a job has written around a Muon and an AdamW."""
    model = small_model()

    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(list(model.parameters()), {})

        def step(self, closure=None):
            self.inner.step()

    optimizer = Around(torch.optim.SGD(model.parameters(), lr=1.0))
    with SNCallback(model, optimizer=optimizer, threshold="1x init") as callback:
        for _ in range(5):
            train_step(model, optimizer)
    assert callback.errors == 0
    assert "lr" not in callback.latest.scalars
    for layer in callback.layers.layers:
        norm = float(torch.linalg.matrix_norm(layer.weight().double(), 2))
        assert norm <= 1.001 * callback.latest[layer.name]["threshold"]


def test_certificates_go_round_and_lie_above_the_spectral_norm():
    model = small_model()
    callback = SNCallback(model, certify_every=4)
    certified = []
    for _ in range(9):
        callback.step()
        found = callback.latest.items()
        certified.append([n for n, r in found if r["sigma_upper_from"] == "certified"])
        for name, reading in callback.latest.items():
            if reading["sigma_upper"] is not None:
                exact = norms(model)[name]
                assert exact <= reading["sigma_upper"] <= exact * (1 + 2e-3)
    # Two layers, each once in four measurements; the first row is the registration.
    assert [len(names) for names in certified[1:]] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert {name for names in certified for name in names} == {"0.weight", "2.weight"}


def test_the_step_leaves_the_global_random_numbers_alone():
    callback = SNCallback(small_model(), threshold=0.5)
    state = torch.get_rng_state()
    for _ in range(20):
        callback.step()
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_and_gradients_in_the_loop_do_not_matter():
    model = small_model()
    with SNCallback(model) as callback, torch.autocast("cpu", dtype=torch.bfloat16):
        callback.step()
    assert callback.errors == 0
    assert sigmas(callback) == pytest.approx(norms(model), rel=1e-5)


# Thresholds


def test_an_init_threshold_is_a_multiple_of_the_sigma_at_attach():
    model = small_model()
    first = norms(model)
    with SNCallback(model, threshold="1.5x init", action="observe") as callback:
        grow(model, 3)
        callback.step()
    expected = {name: 1.5 * norm for name, norm in first.items()}
    assert thresholds(callback) == pytest.approx(expected, rel=1e-3)


def test_a_layer_born_at_zero_gets_the_floor_and_can_learn():
    model = small_model()
    nn.init.zeros_(model[2].weight)
    with SNCallback(model, threshold="3x init") as callback:
        nn.init.normal_(model[2].weight, std=0.01)
        written = model[2].weight.clone()
        callback.step()
    assert thresholds(callback)["2.weight"] == pytest.approx(3 * math.sqrt(6 / 24))
    assert torch.equal(model[2].weight, written)


def test_an_rms_threshold_follows_the_fans():
    with SNCallback(small_model(), threshold="2x rms", action="observe") as callback:
        callback.step()
    expected = {"0.weight": 2 * math.sqrt(24 / 12), "2.weight": 2 * math.sqrt(6 / 24)}
    assert thresholds(callback) == pytest.approx(expected)


def test_a_mapping_gives_each_layer_its_own_threshold_and_none_observes():
    model = small_model()
    before = model[0].weight.clone()
    with SNCallback(model, threshold={"0.*": None, "*": 0.25}) as callback:
        callback.step()
    assert thresholds(callback) == {"0.weight": None, "2.weight": 0.25}
    assert torch.equal(model[0].weight, before)
    assert spectral_norm(model[2].weight) <= 0.25


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": "3x norm"}, "3x norm"),
        ({"threshold": {"nowhere.*": 1.0}}, "nowhere"),
        ({"threshold": 1.0, "action": "shrink"}, "shrink"),
        ({"every": 0}, "every"),
        ({"certify_every": 0.5}, "certify_every"),
        ({"max_overhead": 0}, "max_overhead"),
        ({"max_overhead": 1.5}, "max_overhead"),
        ({"url": "nowhere"}, "url"),
        ({"url": "http://127.0.0.1:1", "run": "a b"}, "run"),
    ],
)
def test_an_argument_without_sense_is_refused_at_construction(keywords, named):
    with pytest.raises(ValueError, match=named):
        SNCallback(small_model(), **keywords)


def test_a_model_without_a_matrix_is_refused():
    with pytest.raises(ValueError, match="matrix"):
        SNCallback(nn.LayerNorm(8))


# Acting


def test_observing_writes_nothing():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with SNCallback(model, threshold=0.01, action="observe") as callback:
        for _ in range(5):
            callback.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(reading["ratio"] > 1 for reading in callback.latest.values())
    assert {reading["scale"] for reading in callback.latest.values()} == {1.0}


def test_a_layer_under_its_threshold_keeps_every_bit():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with SNCallback(model, threshold="1.01x init") as callback:
        for _ in range(20):
            callback.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert callback.errors == 0


def test_rescale_shrinks_all_singular_values_alike():
    model = small_model()
    before = torch.linalg.svdvals(model[0].weight.detach().double())
    with SNCallback(model, threshold=0.5) as callback:
        callback.step()
    after = torch.linalg.svdvals(model[0].weight.detach().double())
    torch.testing.assert_close(after / after[0], before / before[0])
    assert 0.5 * (1 - 1.1e-3) <= after[0] <= 0.5
    scale = callback.latest["0.weight"]["scale"]
    assert scale == pytest.approx(float(after[0] / before[0]), rel=1e-6)


def test_cap_clips_what_is_above_and_leaves_the_rest():
    model = small_model()
    before = torch.linalg.svdvals(model[0].weight.detach().double())
    limit = float(before[3])
    with SNCallback(model, threshold={"0.*": limit, "*": None}, action="cap") as callback:
        callback.step()
    after = torch.linalg.svdvals(model[0].weight.detach().double())
    torch.testing.assert_close(after, before.clamp(max=limit), rtol=1e-5, atol=1e-6)
    assert callback.latest["0.weight"]["scale"] == pytest.approx(limit / float(before[0]), rel=2e-3)


def test_cap_of_a_layer_far_below_costs_no_bit_and_a_leap_is_held_at_once():
    model = small_model()
    first = norms(model)["0.weight"]
    with SNCallback(model, threshold={"0.*": 2 * first, "*": None}, action="cap") as callback:
        for _ in range(3):
            callback.step()
        grow(model, 5)  # within one step from half the threshold to far above
        callback.step()
        assert spectral_norm(model[0].weight) <= 2 * first
    assert callback.errors == 0


def test_stop_raises_at_the_next_step_and_says_what_happened():
    callback = SNCallback(small_model(), threshold={"0.*": 0.5, "*": None}, action="stop")
    callback.step()
    with pytest.raises(ThresholdBreached, match=r"0\.weight") as caught:
        callback.step()
    assert (caught.value.layer, caught.value.step) == ("0.weight", 1)
    assert caught.value.sigma > caught.value.threshold == 0.5
    callback.close()


def test_strict_certifies_every_held_layer_at_every_step():
    model = small_model()
    with SNCallback(model, threshold=0.5, strict=True) as callback:
        for _ in range(4):
            grow(model, 1.5)
            callback.step()
            assert max(norms(model).values()) <= 0.5
    assert all(r["sigma_upper"] >= r["sigma"] for r in callback.latest.values())


def test_weights_that_are_not_finite_are_left_alone_and_recover():
    model = small_model()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[2].weight[0, 0] = math.inf
    callback = SNCallback(model, threshold=0.5)
    poisoned = copy.deepcopy(model.state_dict())
    for _ in range(2):
        callback.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, poisoned[name], rtol=0, atol=0, equal_nan=True)
    assert all(math.isnan(r["sigma"]) and r["scale"] == 1 for r in callback.latest.values())
    model.load_state_dict(small_model(1).state_dict())
    for _ in range(12):
        callback.step()
    callback.close()
    assert callback.errors == 0
    assert max(norms(model).values()) <= 0.5
    assert sigmas(callback) == pytest.approx(norms(model), rel=1e-3)


def test_zero_weights_have_sigma_zero():
    model = small_model()
    nn.init.zeros_(model[0].weight)
    with SNCallback(model, threshold=0.5, strict=True) as callback:
        callback.step()
    assert callback.latest["0.weight"]["sigma"] == 0
    assert callback.latest["0.weight"]["scale"] == 1


def test_frozen_weights_are_measured_and_never_written():
    model = small_model()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    with SNCallback(model, threshold=0.5) as callback:
        callback.step()
    assert torch.equal(model[0].weight, before)
    assert callback.latest["0.weight"]["ratio"] > 1
    assert spectral_norm(model[2].weight) <= 0.5


def test_tied_weights_are_scaled_once():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(20, 8), "b": nn.Linear(8, 20, bias=False)})
    model["b"].weight = model["a"].weight
    before = spectral_norm(model["a"].weight)
    with SNCallback(model, threshold=before / 2) as callback:
        callback.step()
    assert len(callback.layers.layers) == 1
    assert spectral_norm(model["a"].weight) == pytest.approx(before / 2, rel=2e-3)


def test_a_convolution_can_be_held_as_the_operator_that_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    with SNCallback(model, conv="operator") as watching, SNCallback(model) as reshaped:
        watching.step()
        reshaped.step()
    sigma = watching.latest["0.weight"]["sigma"]
    assert sigma > 1.1 * reshaped.latest["0.weight"]["sigma"]
    with SNCallback(model, conv="operator", threshold=sigma / 2) as holding:
        holding.step()
        holding.step()
    assert holding.latest["0.weight"]["sigma"] == pytest.approx(sigma / 2, rel=5e-3)


def test_a_fused_weight_is_measured_part_by_part():
    with SNCallback(nn.Sequential(nn.Linear(8, 24)), split={"0.weight": "qkv"}) as callback:
        callback.step()
    assert list(callback.latest) == ["0.weight[q]", "0.weight[k]", "0.weight[v]"]


def test_an_optimizer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"step\(\)"):
        SNCallback(small_model(), optimizer=object())
