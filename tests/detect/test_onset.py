"""Which layer went first: the order, its ties, and what the next incident makes of it."""

import dataclasses

import numpy as np
import pytest

from snc_service.detect import onset
from snc_service.detect.memory import Memory
from snc_service.detect.rules import advance
from snc_service.store.types import RunRows
from snc_service.wire import Batch, LayerTable

LAYERS = ("fc1", "fc2", "fc3", "fc4")
CALM = 60


def rows(sigma: np.ndarray, first: int = 0, *, new_attempt: bool = False) -> RunRows:
    """Return training rows; the loss says that the first one is one of them."""
    steps = tuple(range(first, first + len(sigma)))
    table = LayerTable.of_names(LAYERS).hash
    loss = np.ones((1, len(sigma)), np.float32)
    values = sigma[None].astype(np.float32)
    batch = Batch("w", 0, table, steps, ("sigma",), values, ("loss",), loss)
    return RunRows("r", batch, LAYERS, int(new_attempt), new_attempt)


def calm(num_rows: int = CALM) -> np.ndarray:
    return np.ones((num_rows, len(LAYERS)))


def leaving(at: dict[str, tuple[int, float]], num_rows: int = 20) -> np.ndarray:
    """Return a training in which each layer of ``at`` jumps by a factor at a row after CALM."""
    sigma = calm(CALM + num_rows)
    for layer, (row, factor) in at.items():
        sigma[CALM + row :, LAYERS.index(layer)] *= factor
    return sigma


def order(sigma: np.ndarray, size: int | None = None) -> list[tuple[str, int]]:
    state = None
    for start in range(0, len(sigma), size or len(sigma)):
        state, _ = advance(state, rows(sigma[start : start + (size or len(sigma))], start))
    return [(each.layer, each.step) for each in onset.order(state, LAYERS)]


def test_a_healthy_training_has_no_onset():
    assert order(calm()) == []
    assert onset.order(None, LAYERS) == []


def test_layers_come_in_the_order_in_which_they_left_and_the_calm_ones_not_at_all():
    sigma = leaving({"fc3": (2, 1.3), "fc1": (5, 1.5), "fc4": (9, 1.2)})
    expected = [("fc3", CALM + 2), ("fc1", CALM + 5), ("fc4", CALM + 9)]
    assert order(sigma) == expected
    for size in (1, 7, CALM + 4):
        assert order(sigma, size) == expected


def test_of_one_step_the_furthest_comes_first_and_equals_in_model_order():
    sigma = leaving({"fc2": (3, 1.3), "fc4": (3, 1.8), "fc1": (3, 1.3)})
    assert [layer for layer, _ in order(sigma)] == ["fc4", "fc1", "fc2"]


def test_it_says_by_which_rule_and_how_far_beyond_its_limit():
    state, events = advance(None, rows(leaving({"fc2": (0, np.exp(0.25))})))
    (left,) = onset.order(state, LAYERS)
    assert (left.rule, left.step) == ("sigma_jump", CALM)
    assert abs(left.times_limit - 2.5) < 1e-3
    assert events[0].layer == left.layer


def test_a_layer_that_comes_back_and_leaves_again_soon_keeps_its_place():
    sigma = leaving({"fc2": (1, 1.3), "fc1": (3, 1.4)}, num_rows=40)
    sigma[CALM + 20 :, 1] *= 1.5
    assert order(sigma) == [("fc2", CALM + 1), ("fc1", CALM + 3)]


def test_after_fifty_calm_steps_the_next_incident_begins_a_new_order():
    sigma = calm(400)
    sigma[100:, 0] *= 1.2
    sigma[300:, 2] *= 1.2
    sigma[302:, 3] *= 1.2
    assert order(sigma[:200]) == [("fc1", 100)]
    assert order(sigma) == [("fc3", 300), ("fc4", 302)]


@pytest.mark.parametrize(
    ("second", "expected"), [(150, [("fc1", 100), ("fc3", 150)]), (151, [("fc3", 151)])]
)
def test_an_incident_lasts_until_more_than_fifty_steps_were_calm(second, expected):
    sigma = calm(200)
    sigma[100:, 0] *= 1.2
    sigma[second:, 2] *= 1.2
    assert order(sigma) == expected


def test_the_fifty_calm_steps_count_from_the_newest_layer_outside_not_from_the_first():
    sigma = calm(200)
    for layer, row in enumerate((100, 130, 160)):
        sigma[row:, layer] *= 1.2
    assert order(sigma) == [("fc1", 100), ("fc2", 130), ("fc3", 160)]


def test_a_layer_that_moved_within_its_limit_has_not_left():
    assert order(leaving({"fc2": (3, 1.3), "fc4": (3, 1.05)})) == [("fc2", CALM + 3)]


def test_of_rows_far_apart_five_calm_ones_end_an_incident():
    sigma = calm(90)
    sigma[60:, 0] *= 4
    sigma[64:, 2] *= 4
    given = rows(sigma)
    batch = dataclasses.replace(given.batch, steps=tuple(range(0, 9_000, 100)))
    state, _ = advance(None, dataclasses.replace(given, batch=batch))
    found = [(each.layer, each.step) for each in onset.order(state, LAYERS)]
    assert found == [("fc1", 6_000), ("fc3", 6_400)]


def test_a_layer_left_when_the_first_of_several_rules_said_so():
    memory = Memory()
    seen = np.float32([2.0, 0.5, 0.5, 0.5])
    later, sooner = onset.Outside(5, 0, seen), onset.Outside(2, 1, 2 * seen)
    onset.remember(memory, rows(calm(10)), [later, sooner])  # by rule, as `judge` finds them
    (left,) = onset.order(memory.dump(), LAYERS)
    assert (left.layer, left.step, left.rule, left.times_limit) == ("fc1", 2, "sigma_jump", 4.0)


def test_a_new_attempt_knows_of_no_onset():
    state, _ = advance(None, rows(leaving({"fc1": (0, 2.0)})))
    assert onset.order(state, LAYERS)
    state, _ = advance(state, rows(calm(5), first=10, new_attempt=True))
    assert onset.order(state, LAYERS) == []


def test_layers_are_found_by_name_in_any_order_and_strangers_are_left_out():
    state, _ = advance(None, rows(leaving({"fc1": (0, 2.0), "fc4": (2, 2.0)})))
    names = [each.layer for each in onset.order(state, ("new", *LAYERS[::-1]))]
    assert names == ["fc1", "fc4"]


def breaching(sigma: np.ndarray, size: int, thresholds=(2.0, 9.0, 9.0, 9.0)) -> list:
    """Return the order and the events of a training with thresholds, in batches of ``size``."""
    state, events = None, []
    for start in range(0, len(sigma), size):
        part = rows(sigma[start : start + size], start)
        limits = np.broadcast_to(np.float32(thresholds), part.batch.values.shape)
        values = np.concatenate([part.batch.values, limits])
        batch = dataclasses.replace(part.batch, metrics=("sigma", "threshold"), values=values)
        state, found = advance(state, dataclasses.replace(part, batch=batch))
        events += [(each.rule, each.step) for each in found]
    return [(each.layer, each.step) for each in onset.order(state, LAYERS)], events


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_as_long_as_a_breach_lasts_what_leaves_its_band_belongs_to_the_same_incident(size):
    """The first layer stays above its threshold: its incident is open when the second one leaps."""
    sigma = leaving({"fc1": (2, 3.0), "fc2": (150, 1.6)}, 200)
    found, events = breaching(sigma, size)
    assert ("breach", CALM + 2) in events
    assert found == [("fc1", CALM + 2), ("fc2", CALM + 150)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_once_the_breach_is_over_for_50_steps_the_next_layer_begins_a_new_order(size):
    sigma = leaving({"fc1": (2, 3.0), "fc2": (150, 1.6)}, 200)
    sigma[CALM + 60 :, 0] = 1.0
    found, _ = breaching(sigma, size)
    assert found == [("fc2", CALM + 150)]


def test_a_breach_begins_an_order_with_the_layer_that_its_event_names():
    sigma = calm(200)
    found, events = breaching(sigma, 50, thresholds=(0.5, 9.0, 9.0, 9.0))
    assert found == [("fc1", 0)]
    assert ("breach", 0) in events


# Traced back from the alarm


def trace(logs: np.ndarray, alarm: int) -> int:
    return onset.traced(np.arange(len(logs)), np.exp(logs).astype(np.float32), alarm)


def test_growth_is_traced_back_to_where_it_began():
    logs = np.zeros(400)
    logs[250:] = 0.02 * np.arange(1, 151)
    assert trace(logs, 330) == 251  # the first row more than 2 % above


def test_the_noise_of_a_layer_is_its_band():
    logs = np.random.default_rng(5).normal(0, 0.1, 400)
    logs[300:] += 1.0
    assert trace(logs, 350) == 300
    assert trace(logs[:300], 299) == 299


def test_a_layer_that_always_grew_like_that_left_at_its_alarm():
    assert trace(0.01 * np.arange(400), 380) == 380
    assert trace(np.sqrt(np.arange(400)) / 10, 380) == 380  # and one that slows down


def test_a_fall_that_ends_is_no_rise():
    logs = np.maximum(1 - 0.01 * np.arange(400), 0.2)
    logs[390:] += 1.0
    assert trace(logs, 395) == 390


def test_values_that_are_not_measured_or_came_after_the_alarm_do_not_count():
    logs = np.zeros(400)
    logs[300:] = 1.0
    logs[::3] = np.nan
    assert trace(logs, 310) == 301
    logs[311:] = 0.0
    assert trace(logs, 310) == 301


def test_too_few_rows_say_nothing():
    logs = np.r_[np.zeros(9), np.ones(9)]
    assert trace(logs, 17) == 17
    assert trace(np.full(50, np.nan), 17) == 17
