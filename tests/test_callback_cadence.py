"""Layers near a threshold are measured at every step, the others as often as the cost allows."""

import numpy as np
import pytest
import torch
from torch import nn

from snc_client import SNCallback
from snc_client.callback.cadence import JUDGED, LONGEST, Cadence
from snc_service.wire import ABSENT


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def pay(cadence: Cadence, share: float) -> None:
    for _ in range(JUDGED):
        cadence.paid(share, 1.0)


def measured_per_step(cadence: Cadence, first: int, steps: int) -> np.ndarray:
    return np.array([cadence.due(step) for step in range(first, first + steps)])


def test_without_a_bound_everything_is_measured_at_every_step():
    cadence = Cadence(3, None)
    pay(cadence, 0.9)
    assert measured_per_step(cadence, 1, 5).all()


def test_idle_layers_take_turns_and_active_ones_do_not():
    cadence = Cadence(4, 0.01)
    steady = column(1.0, 1.0, 1.9, 1.0), column(ABSENT, 4.0, 2.0, 4.0)
    cadence.saw(1, *steady)
    cadence.saw(2, *steady)
    pay(cadence, 0.04)
    assert cadence.interval == 4
    seen = measured_per_step(cadence, 3, 40)
    assert seen[:, 2].all()
    assert seen[:, [0, 1, 3]].sum(0).tolist() == [10, 10, 10]
    assert seen.sum(1).max() <= 2, "turns are spread: no step measures all"


def test_an_idle_layer_that_grows_is_measured_before_it_can_be_active():
    cadence = Cadence(2, 0.001)
    for step in (1, 2):
        cadence.saw(step, column(1.0 + 0.1 * step, 1.0), column(4.0, 4.0))
    pay(cadence, 1.0)
    assert cadence.interval == LONGEST
    seen = measured_per_step(cadence, 3, LONGEST)
    # 0.9 * 4 - 1.2 = 2.4, at most 0.1 a step: twice as fast would take 12 steps.
    assert seen[:, 0].argmax() <= 2 + 12 - 3
    assert seen[:, 1].sum() <= 2


def test_a_layer_that_is_not_finite_stays_active_and_one_not_measured_keeps_its_state():
    cadence = Cadence(3, 0.01)
    cadence.saw(1, column(np.nan, 1.9, 1.0), column(2.0, 2.0, 2.0))
    cadence.saw(2, column(ABSENT, ABSENT, ABSENT), column(ABSENT, ABSENT, ABSENT))
    assert cadence.active.tolist() == [True, True, False]
    cadence.reset()
    assert cadence.active.all()


def test_the_interval_returns_when_time_is_plenty():
    cadence = Cadence(2, 0.01)
    pay(cadence, 0.04)
    pay(cadence, 0.001)
    pay(cadence, 0.001)
    assert cadence.interval == 1


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
    readings = callback.latest
    assert readings["0.weight"]["sigma"] > 0.25
    assert [r["sigma"] for r in readings.values()].count(None) >= 4


@pytest.mark.parametrize("step", [1, 17])
def test_a_layer_that_was_not_measured_is_not_acted_on(step):
    cadence = Cadence(2, 0.01)
    cadence.saw(1, column(1.0, 1.0), column(4.0, 4.0))
    pay(cadence, 0.02)
    assert measured_per_step(cadence, step + 1, 2).sum(0).tolist() == [1, 1]
