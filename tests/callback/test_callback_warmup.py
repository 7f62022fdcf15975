"""Thresholds that change over steps: what is in force at each, and what a bad schedule does."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from no_host_sync import NoHostSync
from small_loops import grow, norms, small_model, thresholds

from snc_client import SNCallback, warm_up
from snc_client.callback.schedule.threshold_schedule import ThresholdFactor


def test_a_warm_up_falls_from_its_start_to_one_and_stays():
    factor = warm_up(10, start=3.0)
    assert [factor(step) for step in (0, 5, 10, 11, 1000)] == [3.0, 2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("steps", "start", "named"),
    [
        (0, 2.0, "steps"),
        (True, 2.0, "steps"),
        (2.5, 2.0, "steps"),
        (5, 0.0, "start"),
        (5, math.nan, "start"),
        (5, math.inf, "start"),
        (5, "3", "start"),
    ],
)
def test_a_warm_up_without_sense_is_refused(steps, start, named):
    with pytest.raises(ValueError, match=named):
        warm_up(steps, start)


@pytest.mark.parametrize("schedule", [3.0, lambda step: 0.0, lambda step: None, lambda step: "1"])
def test_a_schedule_that_gives_no_factor_is_refused_at_construction(schedule):
    with pytest.raises(ValueError, match="schedule must"):
        SNCallback(small_model(), threshold=1.0, schedule=schedule)


def test_a_schedule_that_fails_later_keeps_the_thresholds_and_is_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        factor = ThresholdFactor(lambda step: 1 / (3 - step))
        assert [factor.at(step) for step in (1, 2, 3, 4, 5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert sum("schedule must" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_the_weights_follow_the_threshold_down_at_each_step(strict):
    model = small_model()
    limit, schedule = 0.5, warm_up(8, start=2.0)
    with SNCallback(model, threshold=limit, schedule=schedule, strict=strict) as callback:
        for step in range(1, 13):
            grow(model, 1.1)
            with NoHostSync():
                callback.step()
            assert max(norms(model).values()) <= limit * schedule(step) * (1 + 1e-6)
            if step > 1:
                last = limit * schedule(step - 1)
                assert list(thresholds(callback).values()) == pytest.approx([last, last])
    assert callback.errors == 0


def test_an_infinite_factor_means_no_threshold_yet():
    model = small_model()
    start = {name: w.clone() for name, w in model.named_parameters()}
    schedule = {1: math.inf, 2: math.inf}
    with SNCallback(
        model, threshold=0.5, schedule=lambda step: schedule.get(step, 1.0)
    ) as callback:
        for _ in range(2):
            callback.step()
        assert thresholds(callback) == {"0.weight": None, "2.weight": None}
        assert all(torch.equal(w, start[name]) for name, w in model.named_parameters())
        callback.step()
        assert max(norms(model).values()) <= 0.5


def test_layers_left_out_for_their_cost_are_held_when_the_threshold_reaches_them():
    model = small_model()
    first = norms(model)
    limits = {name: 10 * norm for name, norm in first.items()}
    schedule = warm_up(60, start=30.0)
    callback = SNCallback(
        model, threshold=limits, schedule=lambda s: schedule(s) / 20, max_overhead=1e-6
    )
    for step in range(1, 80):
        callback.step()
        for name, norm in norms(model).items():
            assert norm <= limits[name] * schedule(step) / 20 * (1 + 1e-6)
    callback.close()
    assert all(norms(model)[name] < 0.51 * first[name] for name in first)


def test_another_policy_and_other_groups_keep_the_factor():
    model = small_model()
    callback = SNCallback(model, threshold=1.0, schedule=lambda step: 0.25)
    callback.step()
    callback.load_state_dict(callback.state_dict())
    callback.step()
    callback.step()
    assert list(thresholds(callback).values()) == [0.25, 0.25]
    callback.close()
