"""The guard in real small trainings: what it undoes, and what it leaves alone."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from no_host_sync import NoHostSync
from torch import Tensor, nn

from snc_client import GuardSettings, GuardStopped, SNCallback
from snc_client.callback.guard import guard as guard_module
from snc_client.estimator import block_power

STEPS = 60


class Training:
    """A classifier of four clouds of points, and the guard over it."""

    def __init__(self, guard: bool | GuardSettings = True, *, optimizer: str = "AdamW", **keywords):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                                   nn.Linear(64, 4))  # fmt: skip
        rates = {"AdamW": 2e-3, "SGD": 0.02}
        kind = getattr(torch.optim, optimizer)
        more = {"momentum": 0.9} if optimizer == "SGD" else {}
        self.optimizer = kind(self.model.parameters(), lr=rates[optimizer], **more)
        self.centers = torch.randn(4, 16)
        self.data = torch.Generator().manual_seed(1)
        self.scalars: list[dict[str, float]] = []
        self.callback = None
        if guard is not None:
            keywords = {"optimizer": self.optimizer, **keywords}
            self.callback = SNCallback(self.model, guard=guard, **keywords)

    def batch(self) -> tuple[Tensor, Tensor]:
        label = torch.randint(4, (64,), generator=self.data)
        return self.centers[label] + torch.randn(64, 16, generator=self.data), label

    def step(self, *, spoil=None) -> float:
        x, label = self.batch()
        loss = F.cross_entropy(self.model(x), label)
        self.optimizer.zero_grad()
        loss.backward()
        if spoil is not None:
            spoil(self)
        self.optimizer.step()
        if self.callback is not None and not self.callback._hooks:
            self.callback.step()
        return float(loss.detach())

    def run(self, steps: int, *, spoil=None) -> list[float]:
        return [self.step(spoil=spoil) for _ in range(steps)]

    @property
    def vetoes(self) -> int:
        return int(self.callback._guard._tally[0])

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def state(self) -> list[Tensor]:
        return [
            value.clone()
            for p in self.model.parameters()
            for _, value in sorted(self.optimizer.state[p].items())
        ]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def nan_gradients(training: Training) -> None:
    for p in training.model.parameters():
        p.grad.fill_(torch.nan)


def huge_gradients(training: Training) -> None:
    for p in training.model.parameters():
        p.grad.mul_(1e4)


@pytest.fixture(params=["read at once", "never read"], autouse=True)
def reading(request, monkeypatch):
    """Walk both ways: the CPU's, and that of a device whose values the host may not look at."""
    if request.param == "never read":
        monkeypatch.setattr(guard_module, "reading_is_free", lambda device: False)
        monkeypatch.setattr(block_power, "reading_is_free", lambda device: False)


def spiked(guard: bool | None) -> float:
    """A learning rate 1000 times too high for three steps; return the mean loss at the end."""
    training = Training(guard, optimizer="SGD")
    training.run(STEPS)
    for group in training.optimizer.param_groups:
        group["lr"] *= 1000
    training.run(3)
    for group in training.optimizer.param_groups:
        group["lr"] /= 1000
    return sum(training.run(STEPS)[-20:]) / 20


def test_a_spike_of_the_learning_rate_ruins_a_training_without_the_guard_only():
    unguarded, guarded = spiked(None), spiked(True)
    assert guarded < 0.3
    assert not unguarded < 3 * guarded  # NaN is ruin too


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_step_with_nan_gradients_is_undone_bit_for_bit_with_the_optimizers_state(optimizer):
    training = Training(optimizer=optimizer)
    training.run(20)
    weights, state = training.weights(), training.state()
    training.step(spoil=nan_gradients)
    assert training.vetoes == 1
    assert same(training.weights(), weights)
    assert same(training.state(), state)
    training.run(20)
    assert training.vetoes == 1


def test_five_rejections_in_a_row_of_steps_far_beyond_the_limits_restore_the_state():
    training = Training(optimizer="SGD")
    training.run(20)
    state = training.state()
    training.run(5, spoil=huge_gradients)
    assert same(training.state(), state)
    training.step(spoil=huge_gradients)
    assert training.vetoes == 6
    assert not same(training.state(), state)


def test_of_steps_just_beyond_the_limits_only_the_first_in_a_row_restores_the_state(monkeypatch):
    monkeypatch.setattr(guard_module, "FAR", math.inf)
    training = Training(optimizer="SGD")
    training.run(20)
    state = training.state()
    training.step(spoil=huge_gradients)
    assert same(training.state(), state)
    training.step(spoil=huge_gradients)
    assert training.vetoes == 2
    assert not same(training.state(), state)


def test_three_broken_batches_leave_nothing_in_the_optimizers_momentum():
    broken, healthy = Training(optimizer="SGD"), Training(None, optimizer="SGD")
    for training in (broken, healthy):
        training.run(30)
    broken.run(3, spoil=huge_gradients)
    for _ in range(3):
        healthy.batch()  # the data goes on, the training does not
    assert broken.run(20) == healthy.run(20)
    assert broken.vetoes == 3


def test_a_state_that_is_not_finite_is_cleared_when_it_comes_again_and_again():
    training = Training(optimizer="SGD")
    training.run(20)
    state = training.state()
    training.run(5, spoil=nan_gradients)
    assert same(training.state(), state)
    training.step(spoil=nan_gradients)
    assert all(bool((value == 0).all()) for value in training.state())


def test_a_healthy_training_keeps_every_bit():
    bare, guarded = Training(None), Training()
    assert bare.run(STEPS) == guarded.run(STEPS)
    assert same(bare.weights(), guarded.weights())
    assert same(bare.state(), guarded.state())
    assert guarded.vetoes == 0


def test_a_bit_that_flips_between_steps_is_undone_by_the_guards_own_copy():
    training = Training()
    training.run(20)
    weights = training.weights()
    weight = training.model[2].weight.data  # past the version counter, as a broken memory would
    weight[3, 5] = 1e4
    training.step()
    assert training.vetoes == 1
    assert same(training.weights(), weights)
    training.run(20)
    assert training.vetoes == 1


@pytest.mark.parametrize("optimizer", [None, "given"])
def test_weights_that_are_loaded_on_purpose_are_accepted(optimizer):
    training = Training() if optimizer else by_hand()
    training.run(30)
    other = copy.deepcopy(training.model.state_dict())
    for value in other.values():
        value.mul_(3)
    training.model.load_state_dict(other)
    training.step()
    assert training.vetoes == 0
    assert float(training.weights()[0].norm()) > 0.9 * float(other["0.weight"].norm())
    training.step(spoil=nan_gradients)
    assert training.vetoes == 1


def by_hand() -> Training:
    training = Training(None)
    training.callback = SNCallback(training.model, guard=True)
    return training


def test_a_module_loaded_by_assignment_is_accepted_too():
    training = by_hand()
    training.run(30)
    other = {k: nn.Parameter(3 * v) for k, v in training.model.state_dict().items()}
    training.model.load_state_dict(other, assign=True)
    training.step()
    assert training.vetoes == 0


class ZeroInit(nn.Module):
    """A transformer block whose branches start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 32), nn.Linear(32, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        for block in self.blocks:
            nn.init.zeros_(block.linear2.weight)
            nn.init.zeros_(block.self_attn.out_proj.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_layers_born_at_zero_are_not_rejected():
    torch.manual_seed(0)
    model = ZeroInit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with SNCallback(model, optimizer=optimizer, guard=True) as callback:
        for _ in range(80):
            tokens = torch.randint(32, (8, 1)) + torch.arange(16)
            loss = F.cross_entropy(model(tokens % 32).flatten(0, 1), ((tokens + 1) % 32).flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert int(callback._guard._tally[0]) == 0


def test_a_layer_held_at_its_threshold_may_move_further():
    training = Training(threshold="1x init")
    training.run(40)
    assert training.vetoes == 0


def test_after_too_many_rejections_the_weights_roll_back_to_an_older_copy(caplog):
    training = Training(GuardSettings(max_rejections=4))
    olds = []
    for _ in range(70):
        olds.append(training.weights())
        training.step()
    with caplog.at_level(logging.ERROR):
        training.run(3, spoil=nan_gradients)
        assert same(training.weights(), training_weights := training.weights())
        training.step(spoil=nan_gradients)
        assert not same(training.weights(), training_weights)
        ages = [70 - k for k, old in enumerate(olds) if same(old, training.weights())]
        assert len(ages) == 1
        assert 25 <= ages[0] <= 50
        training.step()
        training.step()
    assert any("rolled the weights back" in message for message in caplog.messages)
    assert training.callback.errors == 0


def test_the_third_roll_back_without_rest_ends_the_training():
    training = Training(GuardSettings(max_rejections=3))
    training.run(40)
    with pytest.raises(GuardStopped, match="3 roll-backs"):
        training.run(20, spoil=nan_gradients)
    assert int(training.callback._guard._tally[2]) == 3


def test_accept_takes_the_step_after_so_many_but_never_one_that_is_not_finite():
    training = Training(GuardSettings(max_rejections=2, at_limit="accept"), optimizer="SGD")
    training.run(20)
    weights = training.weights()
    training.run(5, spoil=nan_gradients)
    assert training.vetoes == 5
    assert same(training.weights(), weights)
    training.step()
    training.run(3, spoil=huge_gradients)
    assert not same(training.weights(), weights)


def test_buffers_go_back_with_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callback = SNCallback(model, optimizer=optimizer, guard=True)
    for k in range(30):
        mean = model[1].running_mean.clone()
        x = torch.randn(32, 8) if k < 29 else torch.full((32, 8), torch.nan)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[1].running_mean, mean)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    callback.close()


def test_nothing_waits_for_the_device():
    training = Training(threshold="2x init")
    training.run(35)
    x, label = training.batch()
    F.cross_entropy(training.model(x), label).backward()
    with NoHostSync():
        training.callback._stepped(0)
    assert training.callback.errors == 0


def test_what_was_undone_is_counted_and_says_which_layer():
    training = Training(optimizer="SGD")
    training.run(20)
    training.step(spoil=huge_gradients)
    training.step()
    scalars, latest = training.callback.latest.scalars, training.callback.latest
    assert (scalars["guard_vetoes"], scalars["guard_rollbacks"]) == (1, 0)
    assert max(reading["guard"] for reading in latest.values()) > 1
    training.step()
    assert training.callback.latest.scalars["guard_vetoes"] == 0
    assert not {"guard_in_row", "guard_steps", "guard_calm"} & set(latest.scalars)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"guard": 1}, "guard must be True"),
        ({"guard": True, "every": 2}, "every must be 1"),
        ({"guard": True, "max_overhead": 0.1}, "max_overhead None"),
    ],
)
def test_arguments_that_the_guard_cannot_serve_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        SNCallback(nn.Linear(4, 4), **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"max_rejections": 0}, "at least 1"), ({"at_limit": "hope"}, "at_limit must be")],
)
def test_settings_that_make_no_sense_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        GuardSettings(**keywords)


def test_after_a_resume_the_guard_is_back_within_a_few_steps():
    training = Training(optimizer="SGD")
    training.run(20)
    training.callback.load_state_dict(training.callback.state_dict())
    training.run(4)
    weights = training.weights()
    training.step(spoil=huge_gradients)
    assert training.vetoes == 1
    assert same(training.weights(), weights)


def test_parameters_that_are_no_real_numbers_do_no_harm():
    model = nn.Linear(8, 8)
    model.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    model.codes = nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)
    (model(torch.ones(2, 8)).sum() + (model.phase.abs() ** 2).sum()).backward()
    with SNCallback(model, guard=True) as callback:
        callback.step()
        callback.step()
    assert callback.errors == 0
    assert callback.latest.scalars["grad_norm"] > 0


def too_fast(training: Training) -> None:
    for group in training.optimizer.param_groups:
        group["lr"] = 20.0


def matrices(training: Training) -> list[Tensor]:
    return [p.detach().double() for p in training.model.parameters() if p.ndim == 2]


def test_where_every_step_is_too_large_a_part_is_made_that_stays_within_the_limits():
    """Of part f of a step the norm moves by f times as much, and sigma, convex in f, no further."""
    training = Training(optimizer="SGD")
    training.run(20)
    too_fast(training)
    before = training.weights()
    training.run(5)
    assert training.vetoes == 5
    assert same(training.weights(), before)
    for _ in range(40):
        old = matrices(training)
        training.step()
        for then, now in zip(old, matrices(training), strict=True):
            share = (now - then).norm() / then.norm()
            assert share <= 0.15 * 0.31
            sigmas = [torch.linalg.matrix_norm(w, 2) for w in (then, now)]
            assert (
                sigmas[1] / sigmas[0]
            ).log() <= 0.10 * 0.33  # log(1 + 0.3 (e^0.1 - 1)), and an estimate
    assert not same(training.weights(), before)
    assert training.callback.errors == 0


def test_with_roll_back_the_same_training_ends():
    training = Training(GuardSettings(at_limit="roll back"), optimizer="SGD")
    training.run(20)
    too_fast(training)
    with pytest.raises(GuardStopped):
        training.run(100)


def test_parts_are_never_made_of_a_step_that_is_not_finite():
    training = Training(GuardSettings(max_rejections=30))
    training.run(20)
    before = training.weights()
    training.run(12, spoil=nan_gradients)
    assert same(training.weights(), before)
