"""The generator of labelled trainings: honest faults, labels by the protocol, what was recorded."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

BENCH = Path(__file__).resolve().parents[2] / "bench" / "instability"
sys.path.append(str(BENCH))

import labelling  # noqa: E402  (the folder above must be known first)
import training  # noqa: E402
from faults import Fault, middle  # noqa: E402
from kind_scenarios import SCENARIOS  # noqa: E402
from kinds import KINDS  # noqa: E402
from scenarios import Scenario  # noqa: E402

from snc_service.backtest.files import read_run  # noqa: E402
from snc_service.backtest.replay import replay  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def short(task: str, rows: int = 40, fault: Fault | None = None, **more) -> Scenario:
    made = None if fault is None else lambda seed: fault
    return Scenario(task, "short", more.pop("lr", 2e-3), rows=rows, fault=made, **more)


@pytest.mark.parametrize(
    "task", ["tf", "mlp", "cnn", "td", "moe", "rnn", "res", "pairs", "gan", "ac", "table"]
)
def test_a_training_is_the_same_again_and_until_the_fault_the_same_as_its_twin(task):
    faulty = short(task, 12, Fault("lr_spike", 5, 3, 50.0))
    first, again, twin = (training.train(s, 1) for s in (faulty, faulty, faulty.twin()))
    assert first.losses == again.losses
    assert first.losses[:6] == twin.losses[:6]
    assert first.losses[6:] != twin.losses[6:]
    assert first.losses[0] != training.train(faulty, 0).losses[0]


def test_what_is_recorded_is_what_the_callback_measured(tmp_path):
    trained = training.train(short("mlp", optimizer="sgd"), 0)
    arrays = trained.arrays
    assert arrays["sigma"].shape == (40, 5)
    assert arrays["loss"].tolist() == pytest.approx(trained.losses, rel=1e-6)
    assert np.allclose(arrays["lr"], 2e-3)
    # SGD's first update is lr * (gradient + decay * weight), of a matrix that sigma <= F bounds.
    change = arrays["unorm"][0] / (2e-3 * arrays["gnorm"][0])
    assert change == pytest.approx(np.ones(5), rel=0.2)
    assert (arrays["sigma"] <= arrays["fro"] * (1 + 1e-6)).all()
    assert np.abs(np.log(arrays["sigma"][0] / arrays["s0"])).max() < 0.05
    np.savez(tmp_path / "run.npz", **arrays)
    (found,) = replay(read_run(tmp_path / "run.npz"), [None])
    assert found.last_step == 40


def test_sigma_that_was_recorded_is_the_spectral_norm_within_a_percent():
    task = training.make("mlp", 0, {})
    scenario = short("mlp")
    optimizer = training.optimizer_of(scenario, task.model)
    callback = training.SNCallback(task.model, optimizer=optimizer)
    trained = training.Trained()
    exact = []
    for step in range(30):
        loss = training.advance(
            scenario, task, Fault(), optimizer, step, trained, training.untreated
        )
        callback.step(loss=loss)
        exact.append([float(torch.linalg.matrix_norm(layer.weight().detach().double(), 2))
                      for layer in callback.layers.layers])  # fmt: skip
    callback.close()
    recorded = training.train(short("mlp", 30), 0).arrays["sigma"]
    assert recorded == pytest.approx(np.array(exact), rel=0.01)


def test_a_run_ends_15_rows_after_its_loss_is_no_number():
    trained = training.train(short("mlp", 60, Fault("nan_gradient", 20, 1)), 0)
    broken = np.flatnonzero(~np.isfinite(trained.losses))
    assert broken[0] == 21
    assert len(trained.losses) == 21 + training.AFTERMATH + 1
    assert trained.end == np.inf


@pytest.mark.parametrize(
    ("task", "rows", "lasts", "more"),
    [("tf", 160, 20, {"warm_up": 20}), ("mlp", 240, 15, {"lr": 0.05, "optimizer": "sgd"})],
)
def test_a_spike_of_the_learning_rate_ruins_a_run_without_the_guard_and_does_not_with_it(
    task, rows, lasts, more
):
    spiked = short(task, rows, Fault("lr_spike", 80, lasts, 60.0), **more)
    twin, alone = (training.train(scenario, 0) for scenario in (spiked.twin(), spiked))
    guarded = training.train(spiked, 0, guard=True)
    assert not alone.end < 1.2 * twin.end  # no number is ruin too
    assert guarded.end < 1.1 * twin.end
    # Some steps after the spike are made in part too: its steps are in the momentum.
    assert lasts / 2 <= guarded.vetoes < lasts + 20
    assert guarded.rollbacks == 0


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)


def test_each_fault_changes_what_it_says_and_only_while_it_lasts():
    x, y, noise = torch.ones(8, 4), torch.zeros(8, dtype=torch.long), torch.Generator()
    for step, is_on in ((4, False), (5, True), (6, True), (7, False)):
        assert (Fault("bad_batch", 5, 2, 9.0).inputs(step, x) == (9 if is_on else 1)).all()
        assert (Fault("off_policy", 5, 2, 9.0).next_states(step, x) == (9 if is_on else 1)).all()
        assert Fault("lr_spike", 5, 2, 9.0).rate(step) == (9 if is_on else 1)
        assert bool(Fault("label_burst", 5, 2).targets(step, y, 10, noise).any()) == is_on
        assert Fault("no_zero_grad", 5, 2).keeps_gradients(step) == is_on
        model = Probe()
        Fault("gradient_scale", 5, 2, 9.0).spoil_gradients(step, model)
        assert (model.a.weight.grad == (9 if is_on else 1)).all()
        Fault("nan_gradient", 5, 2).spoil_gradients(step, model)
        assert sum(int(p.grad.isnan().sum()) for p in model.parameters()) == is_on


def test_faults_in_memory_change_weights_without_a_trace_for_autograd():
    model = Probe()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    Fault("bit_flip", 0, 1, 100.0).spoil_weights(0, model, optimizer)
    changed = [int((p != old).sum()) for p, old in zip(model.parameters(), before, strict=True)]
    assert sum(changed) == 1
    assert float((middle(model).detach() - before[2]).max()) == pytest.approx(100)
    assert versions == [p._version for p in model.parameters()]
    bias = model.a.bias.detach().clone()
    Fault("dead_relu", 0, 1, 6.0).spoil_weights(0, model, optimizer)
    assert torch.allclose(model.a.bias, bias - 6)
    Fault("decay_sign", 0, 1, 5.0).spoil_weights(0, model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model.c.weight.detach().clone()
    optimizer.step()
    assert torch.allclose(model.c.weight, 1.5 * weight)


def test_faults_of_data_and_outputs_grow_from_their_first_row():
    x = torch.ones(8, 4)
    assert (Fault("input_ramp", 5, size=2.0).inputs(4, x) == 1).all()
    assert (Fault("input_ramp", 5, size=2.0).inputs(6, x) == 4).all()
    assert (Fault("dark", 5, size=4).inputs(6, x) == 0.5).all()
    assert (Fault("dark", 5, size=4).inputs(60, x) == 0).all()
    assert (Fault("temperature", 5, size=3.0).logits(6, x) == 9).all()
    assert Fault("rate_growth", 5, size=2.0).rate(6) == 4
    assert [Fault("skip", 5, size=3).skips(step) for step in (4, 6, 7, 10)] == [0, 0, 1, 1]


def test_faults_of_gradients_and_weights_do_what_they_say():
    model = Probe()
    Fault("doubling", 5, size=2).spoil_gradients(8, model)
    assert (model.a.weight.grad == 4).all()
    Fault("ascent", 5).spoil_gradients(5, model)
    assert (model.a.weight.grad == -4).all()
    Fault("frozen", 5).spoil_gradients(5, model)
    assert middle(model).grad is None
    stale = Fault("stale", 0, size=1)
    for value in (1.0, 2.0, 3.0):
        model.a.weight.grad.fill_(value)
        stale.spoil_gradients(0, model)
    assert (model.a.weight.grad == 2).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    weight, bias = model.a.weight.detach().clone(), model.a.bias.detach().clone()
    Fault("shrink", 0, size=0.5).spoil_weights(0, model, optimizer)
    Fault("gains", 0, size=0.5).spoil_weights(0, model, optimizer)
    assert torch.equal(model.a.weight, 0.5 * weight)
    assert torch.equal(model.a.bias, 1.5 * bias)


HEALTHY = 2.0 + 2.0 * np.exp(-np.arange(400) / 30)


def found(losses, cause=0, task="mlp"):
    healthy = np.full(400, 0.4) if task == "td" else HEALTHY
    return labelling.symptom(list(losses), cause, list(healthy), moving=task == "td")


def test_a_loss_like_the_healthy_one_has_no_symptom():
    assert found(HEALTHY, cause=100) == ("none", 100, None)


def test_a_loss_that_leaps_and_stays_diverges_at_its_second_row():
    losses = HEALTHY.copy()
    losses[200:] += 5
    assert found(losses, cause=199) == ("diverge", 199, 201)  # the median of 3 sees two of them


def test_a_loss_that_leaps_and_comes_back_is_transient():
    losses = HEALTHY.copy()
    losses[200:206] += 5
    assert found(losses, cause=199) == ("transient", 199, 201)


def test_a_symptom_before_the_cause_sets_the_cause_to_0():
    losses = HEALTHY.copy()
    losses[150:] += 5
    assert found(losses, cause=200) == ("diverge", 0, 151)


def test_a_loss_that_is_no_number_is_a_symptom_in_that_row():
    losses = HEALTHY.copy()
    losses[222:] = np.nan
    assert found(losses, cause=200) == ("diverge", 200, 222)


@pytest.mark.parametrize(("share", "kind"), [(0.1, "none"), (0.2, "degraded"), (0.5, "stall")])
def test_a_loss_that_lags_behind_for_good_is_degraded_or_stalls(share, kind):
    level = HEALTHY[-50:].mean()
    losses = np.maximum(HEALTHY, level + share * (HEALTHY[0] - level))  # it stops where it is
    assert found(losses, cause=50)[0] == kind


def test_td_must_triple_its_best_loss_and_its_first_one_at_the_beginning():
    losses = np.full(300, 0.4)
    losses[:10] = 1.0
    losses[20:24] = 2.5
    assert found(losses, task="td") == ("none", 0, None)
    losses[200:] = 1.3
    assert found(losses, cause=200, task="td") == ("diverge", 200, 201)


def test_scenarios_have_names_of_their_own_and_faults_a_cause_for_each_seed():
    names = [(scenario.task, scenario.name, scenario.is_faulty) for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert {scenario.task for scenario in SCENARIOS if scenario.name == "base"} == set(KINDS)
    assert len(KINDS) >= 14
    faulty = [scenario for scenario in SCENARIOS if scenario.is_faulty]
    kinds = {s.fault(0).kind for s in faulty if s.fault is not None}
    assert len(kinds) >= 20
    for scenario in faulty:
        if scenario.fault is not None:
            assert scenario.fault(0).start != scenario.fault(1).start
            assert scenario.fault(0).kind != "none"


@pytest.mark.timeout(180)
def test_the_whole_bench_runs_writes_labels_and_prints_the_score(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), "--quick", "--first-seed", "0",
         "--only", "mlp_bad_batch", "--keep", str(tmp_path)],
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader((tmp_path / "labels.csv").read_text().splitlines())
    labels = {row["id"]: row for row in rows}
    assert set(labels) == {"H_mlp_base_s0", "U_mlp_bad_batch_s0"}
    assert {path.stem for path in tmp_path.glob("*.npz")} == set(labels)
    assert labels["U_mlp_bad_batch_s0"]["cause"] == "160"
    assert 160 < int(labels["U_mlp_bad_batch_s0"]["symptom"]) < 165
    assert "recall 1 / 1 = 1.000" in done.stdout
    assert "false alarms in: none" in done.stdout
