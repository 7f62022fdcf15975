"""SNCallback in a training loop: what it measures, what it holds, what it never does."""

from __future__ import annotations

import copy
import io
import logging
import math
import socket
from collections.abc import Iterator

import pytest
import torch
from no_host_sync import NoHostSync
from torch import Tensor, nn

from snc_client import SNCallback, ThresholdBreached


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


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Yield the URL of a port where connections are accepted and nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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


def test_certificates_go_round_and_lie_above_the_spectral_norm():
    model = small_model()
    callback = SNCallback(model, certify_every=4)
    certified = []
    for _ in range(9):
        callback.step()
        certified.append([n for n, r in callback.latest.items() if r["sigma_upper"] is not None])
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
        ({"guard": True}, "not available yet"),
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


def test_strict_refuses_to_hold_what_it_cannot_certify():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.weight"):
        SNCallback(model, conv="operator", strict=True, threshold=1.0)
    limits = {"0.*": None, "*": 1.0}
    SNCallback(model, conv="operator", strict=True, threshold=limits).close()


def test_an_optimizer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"step\(\)"):
        SNCallback(small_model(), optimizer=object())


# Manners


def test_the_step_never_reads_a_device_value():
    model = nn.Sequential(*small_model(), nn.Linear(6, 40), nn.MultiheadAttention(40, 4))
    limits = {"0.*": "1.01x init", "2.*": 0.5, "3.*": "2x rms", "*": None}
    callback = SNCallback(model, threshold=limits, certify_every=3)
    grow(model, 3)
    with NoHostSync() as watched:
        for _ in range(8):
            callback.step(loss=torch.zeros(()), lr=0.1)
    assert callback.errors == 0
    assert callback.latest.step == 7
    assert watched.operations["aten.mm.default"] > 0


@pytest.mark.parametrize("action", ["rescale", "cap"])
def test_neither_does_an_action(action):
    model = small_model()
    callback = SNCallback(model, threshold=0.5, action=action, strict=True)
    with NoHostSync():
        for _ in range(3):
            grow(model, 2)
            callback.step()
    assert callback.errors == 0
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("limits", [{"*": 0.5}, {"0.*": 0.5, "*": None}])
def test_the_way_of_a_device_that_must_not_be_read_holds_too(monkeypatch, limits):
    monkeypatch.setattr("snc_client.callback.group.reading_is_free", lambda device: False)
    model = small_model()
    before = model[2].weight.clone()
    callback = SNCallback(model, threshold=limits, max_overhead=1e-6, certify_every=None)
    for _ in range(30):
        grow(model[0], 1.1)
        with NoHostSync():
            callback.step()
        assert spectral_norm(model[0].weight) <= 0.5
    assert callback.errors == 0
    assert torch.equal(model[2].weight, before) == ("0.*" in limits)


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it where torch sees a GPU"
)
@pytest.mark.parametrize("action", ["observe", "rescale", "cap"])
def test_cuda_reports_no_synchronisation_in_the_step(action):
    model = small_model().cuda()
    callback = SNCallback(model, threshold=0.5, action=action, certify_every=3)
    loss = torch.zeros((), device="cuda")
    callback.step(loss=loss)  # the first call may allocate pinned memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            grow(model, 2)
            callback.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    callback.close()
    assert callback.errors == 0
    assert action == "observe" or max(norms(model).values()) <= 0.5 * (1 + 1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it where torch sees a GPU"
)
def test_layers_on_two_devices_make_one_row():
    model = small_model()
    model[2].cuda()
    with SNCallback(model) as callback:
        callback.step(loss=torch.tensor(0.5, device="cuda"), accuracy=torch.tensor(0.25))
    assert sigmas(callback) == pytest.approx(norms(model), rel=1e-4)
    assert callback.latest.scalars["loss"] == 0.5
    assert callback.latest.scalars["accuracy"] == 0.25


class Boom(nn.Module):
    """A parametrization that fails when told to: what a user's own code can do to us."""

    armed = False

    def forward(self, weight: Tensor) -> Tensor:
        if self.armed:
            raise RuntimeError("boom")
        return weight


def test_an_exception_of_ours_is_counted_and_logged_once_and_training_goes_on(caplog):
    model = small_model()
    boom = Boom()
    nn.utils.parametrize.register_parametrization(model[0], "weight", boom)
    with SNCallback(model) as callback:
        boom.armed = True
        for _ in range(3):
            callback.step()
        assert callback.errors == 3
        assert sum("was not measured" in message for message in caplog.messages) == 1
        boom.armed = False
        callback.step()
    assert callback.latest.step == 4


def test_an_optimizer_measures_at_each_of_its_steps_until_close():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SNCallback(model, optimizer=optimizer, threshold=0.5) as callback:
        for _ in range(3):
            loss = train_step(model, optimizer)
            assert max(norms(model).values()) <= 0.5
            callback.step(loss=loss)
    assert callback.latest.step == 3
    assert callback.latest.scalars["loss"] == pytest.approx(loss.item())
    before = norms(model)
    grow(model, 3)
    train_step(model, optimizer)
    assert max(norms(model).values()) > 2 * max(before.values()), "the hook must be gone"
    assert callback.latest.step == 3


def test_a_step_that_the_gradient_scaler_skips_changes_nothing():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    with SNCallback(model, threshold="2x init") as callback:
        before = copy.deepcopy(model.state_dict())
        loss = model(torch.full((4, 12), math.inf)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        callback.step(loss=loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert callback.errors == 0
    assert sigmas(callback) == pytest.approx(norms(model), rel=1e-4)


def test_the_model_gets_no_attribute_no_hook_and_no_state():
    model = small_model()
    keys, names = list(model.state_dict()), set(vars(model))
    callback = SNCallback(model, threshold="2x init")
    callback.step()
    copied = copy.deepcopy(model)
    assert list(model.state_dict()) == list(copied.state_dict()) == keys
    assert set(vars(model)) == names
    assert not model._forward_hooks
    assert not model[0]._forward_pre_hooks
    small_model(1).load_state_dict(model.state_dict(), strict=True)


def test_a_copy_of_the_model_is_not_watched_and_the_original_still_is():
    model = small_model()
    with SNCallback(model, threshold=0.5) as callback:
        copied = copy.deepcopy(model)
        grow(model, 2)
        grow(copied, 2)
        callback.step()
    assert max(norms(model).values()) <= 0.5
    assert max(norms(copied).values()) > 1


def test_training_and_evaluation_mode_make_no_difference():
    model = small_model()
    with SNCallback(model) as callback:
        model.eval()
        model(torch.randn(2, 12))
        callback.step()
        callback.step()
        in_eval = sigmas(callback)
        model.train()
        callback.step()
    assert sigmas(callback) == pytest.approx(in_eval, rel=1e-6)
    assert not model[0].weight.grad


def test_two_callbacks_on_one_model_do_their_own_work():
    model = small_model()
    with SNCallback(model) as watching, SNCallback(model, threshold=0.5) as holding:
        watching.step()
        holding.step()
        watching.step()
    assert max(norms(model).values()) <= 0.5
    assert sigmas(watching) == pytest.approx(norms(model), rel=1e-4)
    assert sigmas(holding)["0.weight"] > 0.5


def test_weights_replaced_by_assignment_are_followed():
    model = small_model()
    with SNCallback(model, threshold=0.5) as callback:
        callback.step()
        other = small_model(1)
        grow(other, 4)
        model.load_state_dict(other.state_dict(), assign=True)
        for _ in range(6):
            callback.step()
        assert max(norms(model).values()) <= 0.5


def test_a_layer_that_is_gone_is_absent_and_the_others_go_on(caplog):
    model = small_model()
    with SNCallback(model, threshold=0.5, certify_every=1) as callback:
        callback.step()
        model[2] = nn.Identity()
        grow(model, 3)
        for _ in range(3):
            callback.step()
    assert callback.errors == 0
    assert callback.latest["2.weight"]["sigma"] is None
    assert spectral_norm(model[0].weight) <= 0.5
    assert "2.weight" in caplog.text


# State


def saved_and_loaded(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_callback_keeps_its_reference_and_its_warm_blocks():
    model = small_model()
    callback = SNCallback(model, threshold="1.5x init")
    for _ in range(5):
        callback.step()
    state = saved_and_loaded(callback.state_dict())
    grow(model, 1.2)  # a checkpoint of later weights: their sigma is not the reference
    resumed = SNCallback(model, threshold="1.5x init")
    resumed.load_state_dict(state)
    for each in (callback, resumed):
        each.step()
        each.close()
    assert thresholds(resumed) == thresholds(callback)
    assert resumed.latest.step == callback.latest.step == 6
    # The same blocks see the same weights: equal to the last bit.
    assert sigmas(resumed) == sigmas(callback)


def test_going_back_to_an_earlier_state_starts_the_next_attempt():
    callback = SNCallback(small_model())
    callback.step()
    state = callback.state_dict()
    callback.load_state_dict(state)
    assert callback.attempt == 0
    callback.step()
    callback.load_state_dict(state)
    assert callback.attempt == 1
    callback.step()
    callback.close()
    assert callback.latest.step == 2


def test_a_state_of_other_layers_starts_them_afresh_and_one_of_another_version_is_refused():
    state = SNCallback(nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 9))).state_dict()
    model = small_model()
    with SNCallback(model) as callback:
        callback.load_state_dict(state)
        for _ in range(12):
            callback.step()
    assert callback.errors == 0
    assert sigmas(callback) == pytest.approx(norms(model), rel=1e-3)
    with pytest.raises(ValueError, match="version"):
        callback.load_state_dict({"version": 99})


# The way out


@pytest.mark.timeout(60)  # one request waits 10 s for an answer: 20 steps that wait take longer
def test_a_service_that_never_answers_costs_the_loop_nothing_and_close_is_bounded(dead_url):
    model = small_model()
    callback = SNCallback(model, threshold=0.5, url=dead_url, run="dead")
    for _ in range(20):
        callback.step(loss=0.5)
    callback.close(timeout=0.5)
    callback.close()
    assert callback.errors == 0
    assert callback.latest.step == 20
    assert callback.dropped_values > 0
    assert max(norms(model).values()) <= 0.5


def test_without_a_service_nothing_is_sent_and_all_is_enforced(monkeypatch):
    monkeypatch.delenv("SNC_URL", raising=False)
    with SNCallback(small_model(), threshold=0.5) as callback:
        callback.step()
    assert callback.run is None
    assert callback.sent_values == callback.dropped_values == 0


def test_the_environment_names_the_service_and_the_run(monkeypatch, dead_url):
    monkeypatch.setenv("SNC_URL", dead_url)
    monkeypatch.setenv("SNC_RUN", "from-the-environment")
    callback = SNCallback(small_model())
    assert callback.run == "from-the-environment"
    callback.close(timeout=0)


def test_the_start_says_what_is_watched_and_where_data_go(caplog, dead_url):
    with caplog.at_level(logging.INFO, logger="snc"):
        SNCallback(small_model(), url=dead_url, run="told").close(timeout=0)
        SNCallback(small_model())
    assert "2 layers measured" in caplog.text
    assert "told" in caplog.text
    assert "nothing is sent" in caplog.text


def test_the_overhead_is_measured():
    callback = SNCallback(small_model())
    assert math.isnan(callback.overhead)
    for _ in range(5):
        callback.step()
    assert 0 < callback.overhead <= 1
