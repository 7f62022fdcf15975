"""SNCallback in a training loop: what it never does, what it keeps, how it ends."""

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
from small_loops import grow, norms, sigmas, small_model, spectral_norm, thresholds, train_step
from torch import Tensor, nn

from snc_client import SNCallback


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Yield the URL of a port where connections are accepted and nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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
    monkeypatch.setattr(
        "snc_client.callback.monitor.device_group.reading_is_free", lambda device: False
    )
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


def test_a_callback_made_again_on_a_model_takes_the_place_of_the_one_before():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first = SNCallback(model, optimizer=optimizer, threshold=0.5)
    train_step(model, optimizer)
    second = SNCallback(model, optimizer=optimizer, threshold=0.9)
    grow(model, 10)
    train_step(model, optimizer)
    second.close()
    assert first.latest.step == 1, "its last row was collected, and it measured no other"
    assert max(norms(model).values()) == pytest.approx(0.9, rel=2e-3)
    assert len(optimizer._optimizer_step_post_hooks) == 0


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
    resumed = SNCallback(copy.deepcopy(model), threshold="1.5x init")
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


def test_a_spool_keeps_the_rows_of_a_job_that_no_service_answered(dead_url, tmp_path):
    callback = SNCallback(small_model(), url=dead_url, run="spooled", spool=tmp_path)
    for _ in range(3):
        callback.step(loss=0.5)
    callback.close(timeout=0.5)
    assert callback.dropped_values == 0
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 0


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
