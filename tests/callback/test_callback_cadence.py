"""Layers near a threshold are measured at every step, the others as often as the cost allows."""

import numpy as np
import pytest
import torch
from torch import nn

from snc_client import SNCallback, measure
from snc_client.callback.schedule.measure_schedule import (
    JUDGED,
    LONGEST,
    Cadence,
    rounds_between,
    turns,
)
from snc_service.wire import ABSENT, absent


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def pay(cadence: Cadence, share: float) -> None:
    for _ in range(JUDGED):
        cadence.paid(share, 1.0)


def measured_per_step(cadence: Cadence, first: int, steps: int) -> np.ndarray:
    return np.array([cadence.due(step).layers for step in range(first, first + steps)])


def idle(num_layers: int, **keywords: object) -> Cadence:
    """Return a cadence that has seen every layer far below its threshold."""
    cadence = Cadence(num_layers, **{"max_overhead": None, **keywords})
    for step in (1, 2):
        cadence.saw(step, np.ones(num_layers, np.float32), np.full(num_layers, 9, np.float32))
    return cadence


def test_with_one_turn_and_no_bound_everything_is_measured_at_every_step():
    cadence = Cadence(3, None)
    pay(cadence, 0.9)
    assert measured_per_step(cadence, 1, 5).all()


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4), (500, 5)]
)
def test_no_turn_has_fewer_than_two_layers_unless_there_is_only_one(num_layers, expected):
    assert turns(num_layers) == expected
    seen = measured_per_step(idle(num_layers, turns=turns(num_layers)), 3, 60)
    assert seen.sum(1).min() >= min(2, num_layers)
    assert seen.sum(0).tolist() == [60 // expected] * num_layers


def test_idle_layers_take_turns_and_active_ones_do_not():
    cadence = Cadence(4, None, turns=4)
    steady = column(1.0, 1.0, 1.9, 1.0), column(ABSENT, 9.0, 2.0, 9.0)
    cadence.saw(1, *steady)
    cadence.saw(2, *steady)
    seen = measured_per_step(cadence, 3, 20)
    assert seen[:, 2].all()
    assert seen[:, [0, 1, 3]].sum(0).tolist() == [5, 5, 5]
    assert seen.sum(1).max() <= 2, "turns are spread: no step measures all"


def test_a_convolution_as_an_operator_takes_its_turn_less_often_the_more_positions_it_has():
    assert rounds_between([1, 64, 65, 256, 1024, 10**6]).tolist() == [1, 1, 2, 4, 10, 10]
    for in_turns in (1, 4):
        cadence = Cadence(8, None, turns=in_turns)
        cadence.saw(1, np.ones(8, np.float32), np.full(8, ABSENT, np.float32))
        cadence.rounds[:] = [1, 1, 2, 2, 4, 4, 10, 10]
        seen = measured_per_step(cadence, 3, 40 * in_turns)
        assert seen.sum(0).tolist() == [40, 40, 20, 20, 10, 10, 4, 4]
        gaps = [np.diff(np.flatnonzero(seen[:, i])).max() for i in range(8)]
        assert gaps == (in_turns * cadence.rounds).tolist(), "evenly spread"


@pytest.mark.parametrize("in_turns", [1, 4, 5])
def test_an_idle_convolution_is_measured_once_in_50_steps_however_slow_the_pace(in_turns):
    cadence = Cadence(8, max_overhead=1e-9, turns=in_turns)
    cadence.saw(1, np.ones(8, np.float32), np.full(8, ABSENT, np.float32))
    cadence.rounds[:] = [1, 1, 2, 2, 4, 4, 10, 10]
    for _ in range(10):
        pay(cadence, 1.0)
    seen = measured_per_step(cadence, 3, 1200)
    assert max(np.diff(np.flatnonzero(seen[:, i])).max() for i in range(8)) <= LONGEST


def test_a_convolution_at_its_size_is_seldom_measured_while_idle_and_held_at_every_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1))
    maps = {"conv": "operator", "example_input": torch.zeros(1, 2, 16, 16)}
    seen, scales = [], []
    with SNCallback(model, threshold={"1.weight": 0.5}, **maps) as callback:
        for _ in range(60):
            with torch.no_grad():
                for weight in (model[0].weight, model[1].weight):
                    weight.mul_(1.001)
            callback.step()
            seen.append(callback.latest["0.weight"]["sigma"])
            scales.append(callback.latest["1.weight"]["scale"])
    assert max(scales[2:]) < 1, "held at every step"
    assert measure(model, **maps)["1.weight"].sigma <= 0.5 * 1.01, "no certificate of a map here"
    assert 8 <= len(set(seen[-40:])) <= 14, "16 x 16 positions: once in 4 steps"


def test_a_bound_slows_the_pace_and_nothing_is_due_in_between():
    cadence = idle(8, max_overhead=0.01, turns=4)
    pay(cadence, 0.03)
    assert cadence.pace == 3
    found = [cadence.due(step) for step in range(3, 27)]
    assert [due.in_turn for due in found] == [True, False, False] * 8
    assert [int(due.layers.sum()) for due in found] == [2, 0, 0] * 8
    assert sum(due.layers.astype(int) for due in found).tolist() == [2] * 8


def test_a_layer_about_which_something_is_unusual_does_not_wait_for_its_turn():
    cadence = idle(8, turns=4)
    steady, limits = np.ones(8, np.float32), np.full(8, 9, np.float32)
    moved, absent_but_two = steady.copy(), np.full(8, ABSENT, np.float32)
    moved[3] = 0.96
    cadence.saw(3, moved, limits, np.arange(8) == 5)
    assert cadence.urgent(4).nonzero()[0].tolist() == [3, 5]
    absent_but_two[[2, 3]] = [1.0, 0.96]
    cadence.saw(4, absent_but_two, limits)
    assert cadence.urgent(5).nonzero()[0].tolist() == [5], "5 was not measured, 3 came to rest"
    assert cadence.active.sum() == 0


def test_the_slowest_round_takes_fifty_steps():
    cadence = idle(8, max_overhead=1e-6, turns=4)
    pay(cadence, 0.5)
    assert cadence.pace == LONGEST // 4


def test_an_idle_layer_that_grows_is_measured_before_it_can_be_active():
    cadence = Cadence(2, 0.001)
    for step in (1, 2):
        cadence.saw(step, column(1.0 + 0.1 * step, 1.0), column(4.0, 40.0))
    pay(cadence, 1.0)
    assert cadence.pace == LONGEST
    cadence.due(2)  # a turn of all of them
    seen = measured_per_step(cadence, 3, LONGEST - 1)
    # 0.9 * 4 - 1.2 = 2.4, at most 0.1 a step: twice as fast would take 12 steps.
    assert seen[:, 0].argmax() <= 2 + 12 - 3
    assert seen[:, 1].sum() == 0


def test_a_layer_that_stood_still_is_still_taken_to_grow_by_some_percent_a_step():
    cadence = idle(1, turns=1)
    cadence.saw(3, column(1.0), column(1.25))
    # 0.9 * 1.25 - 1 = 0.125 at 5 % a step: 2 steps
    assert not cadence.urgent(4).any()
    assert cadence.urgent(5).all()


def test_a_layer_that_is_not_finite_stays_active_and_one_not_measured_keeps_its_state():
    cadence = Cadence(3, 0.01)
    cadence.saw(1, column(np.nan, 1.9, 1.0), column(2.0, 2.0, 2.0))
    cadence.saw(2, column(ABSENT, ABSENT, ABSENT), column(ABSENT, ABSENT, ABSENT))
    assert cadence.active.tolist() == [True, True, False]
    cadence.reset()
    assert cadence.active.all()


def test_the_pace_returns_when_time_is_plenty():
    cadence = Cadence(2, 0.01)
    pay(cadence, 0.04)
    assert cadence.pace == 4
    pay(cadence, 0.001)
    pay(cadence, 0.001)
    assert cadence.pace == 1


def test_more_layers_keep_pace_and_turns_and_are_active_at_first():
    cadence = idle(8, max_overhead=0.01, turns=4)
    pay(cadence, 0.03)
    wider = cadence.wider(2)
    assert (wider.pace, wider.turns) == (3, 4)
    assert wider.active.tolist() == [True] * 10


def test_a_bound_that_cannot_be_kept_is_said_once(caplog):
    cadence = Cadence(2, 0.001)
    for _ in range(3):
        pay(cadence, 0.5)
    assert len(caplog.messages) == 1


def test_in_a_callback_the_cost_falls_and_the_active_layer_is_held_at_every_step():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    limits = {"0.weight": 0.25, "*": "50x init"}
    # So little that nothing but the longest interval can come near it, on any machine.
    with SNCallback(model, threshold=limits, max_overhead=1e-6, certify_every=None) as callback:
        for _ in range(60):
            with torch.no_grad():
                model[0].weight.mul_(1.1)
            callback.step()
            norm = float(torch.linalg.matrix_norm(model[0].weight.detach().double(), 2))
            assert norm <= 0.25
    assert callback.errors == 0
    latest = callback.latest
    assert latest["0.weight"]["sigma"] > 0.25
    assert latest.steps[0] == latest.step == 60
    assert (latest.steps[1:] < 60).sum() >= 3, "the others wait for their turn"
    assert all(reading["sigma"] for reading in latest.values()), "their last measurement is kept"


def train(callback: SNCallback, model: nn.Module, steps: int) -> list[list[int]]:
    """Return the places of the layers that each row measured."""
    rows: list[list[int]] = []
    original = callback._monitor._learn
    callback._monitor._learn = lambda row: (
        rows.append(np.flatnonzero(~absent(row.metric("sigma"))).tolist()),
        original(row),
    )
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        callback.step(loss=1.0)
    callback.close()
    return rows


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))


def test_by_default_idle_layers_take_four_turns_on_a_cpu_and_every_row_has_some():
    model = deep()
    rows = train(SNCallback(model), model, 40)
    assert [len(row) for row in rows[4:]] == [2] * 37
    assert np.bincount([i for row in rows[5:] for i in row]).tolist() == [9] * 8


def test_a_layer_whose_gradient_vanishes_is_in_every_row():
    model = deep()
    with torch.no_grad():
        model[7].weight.mul_(1e-9)  # nothing gets past it: the six before it learn nothing
        model[7].bias.fill_(1.0)
    rows = train(SNCallback(model), model, 30)
    assert all({1, 2, 3, 4, 5, 6} <= set(row) for row in rows[3:])
    assert not all(7 in row for row in rows[3:])


def test_with_idle_every_1_every_row_has_every_layer():
    model = deep()
    rows = train(SNCallback(model, idle_every=1), model, 5)
    assert [len(row) for row in rows] == [8] * 6


def test_sigma_of_layers_in_turns_is_right_to_7e_3_along_a_training():
    model = deep()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    callback = SNCallback(model, optimizer=optimizer)
    true: dict[int, list[float]] = {}
    for step in range(1, 61):
        optimizer.zero_grad()
        (model(torch.randn(32, 16)) - 1).square().mean().backward()
        optimizer.step()
        norms = [torch.linalg.matrix_norm(x.weight.detach().double(), 2) for x in model]
        true[step] = [float(norm) for norm in norms]
        latest = callback.latest
        for i, reading in enumerate(latest.values()):
            if latest.steps[i] > 0:
                exact = true[int(latest.steps[i])][i]
                assert exact * (1 - 7e-3) <= reading["sigma"] <= exact * (1 + 2e-6)


def test_max_overhead_ships_no_row_and_reads_no_gradient_when_nothing_is_due():
    model = deep()
    rows = train(SNCallback(model, max_overhead=1e-6, certify_every=None), model, 100)
    assert len(rows) < 60
    assert [len(row) for row in rows[-3:]] == [2] * 3


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"idle_every": 0}, "idle_every must be an integer of at least 1, got 0"),
        ({"idle_every": 51}, "idle_every must be at most 50, got 51"),
        ({"idle_every": 4, "guard": True}, "idle_every must be 1"),
    ],
)
def test_an_idle_every_that_makes_no_sense_is_refused(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        SNCallback(deep(), **keywords)


@pytest.mark.parametrize("step", [1, 17])
def test_a_layer_that_was_not_measured_is_not_acted_on(step):
    cadence = idle(2, max_overhead=0.01, turns=2)
    assert measured_per_step(cadence, step + 1, 2).sum(0).tolist() == [1, 1]
