"""Which layers are certified when: every one in its turn, no spike, the suspicious ones at once."""

import numpy as np
import pytest

from snc_client.callback.schedule.certify_schedule import CertifySchedule


def everything(num_layers: int) -> np.ndarray:
    return np.ones(num_layers, np.bool_)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(("num_layers", "every"), [(72, 100), (300, 100), (5, 2), (7, 1), (1, 3)])
def test_every_layer_has_its_turn_within_every_measurements_and_none_spikes(num_layers, every):
    schedule = CertifySchedule(num_layers, every)
    rounds = [schedule.due(everything(num_layers)) for _ in range(4 * every)]
    sizes = [len(due) for due in rounds]
    assert max(sizes) <= -(-num_layers // every)
    assert sum(sizes) == pytest.approx(4 * num_layers, abs=1)
    counts = np.bincount([i for due in rounds for i in due], minlength=num_layers)
    assert counts.min() >= 3
    assert counts.max() <= 4


def test_within_a_round_the_layer_nearest_to_its_threshold_comes_first():
    schedule = CertifySchedule(3, every=3)
    schedule.saw(1, column(1.0, 1.0, 1.0), column(2.0, 1.1, np.nan))
    assert [schedule.due(everything(3)) for _ in range(3)] == [[1], [0], [2]]


def test_a_layer_that_crosses_its_threshold_or_jumps_is_next_and_only_once():
    schedule = CertifySchedule(5, every=500)
    threshold = column(2, 2, 2, 9, np.nan)
    schedule.saw(1, column(1.00, 1.99, 1.0, 1.0, 1.0), threshold)
    assert schedule.due(everything(5)) == []
    schedule.saw(2, column(1.04, 2.01, 1.0, 1.1, 1.1), threshold)  # 1 crosses, 3 jumps by 10 %
    assert [schedule.due(everything(5)) for _ in range(3)] == [[1], [3], []]
    schedule.saw(
        3, column(1.04, 2.02, 1.0, 1.1, 1.1), threshold
    )  # still above: it has crossed already
    assert schedule.due(everything(5)) == []


def test_what_moved_in_several_steps_without_a_measurement_is_no_jump():
    schedule = CertifySchedule(2, every=400)
    threshold = column(5, 5)
    schedule.saw(1, column(1.0, 1.0), threshold)
    schedule.saw(2, column(np.nan, np.nan), column(np.nan, np.nan))
    schedule.saw(6, column(1.2, 1.3), threshold)  # 4 % and 6 % a step
    assert [schedule.due(everything(2)) for _ in range(2)] == [[1], []]


def test_values_that_are_not_finite_disturb_nothing():
    schedule = CertifySchedule(2, every=2)
    schedule.saw(1, column(np.nan, 0.0), column(np.nan, 0.0))
    schedule.saw(2, column(np.inf, 0.0), column(1.0, np.inf))
    schedule.saw(3, column(np.nan, 1.0), column(1.0, 2.0))
    assert sorted(i for _ in range(2) for i in schedule.due(everything(2))) in (
        [0, 1],
        [0, 0, 1],
        [0, 1, 1],
    )


def test_a_layer_that_is_measured_less_often_is_certified_less_often_and_only_when_measured():
    schedule = CertifySchedule(4, every=5)
    certified = np.zeros(4)
    for step in range(400):
        measured = np.array([True, step % 4 == 0, step % 4 == 1, step % 4 == 2])
        due = schedule.due(measured)
        assert measured[due].all()
        certified[due] += 1
    assert certified[0] == pytest.approx(400 / 5, abs=4)
    assert certified[1:] == pytest.approx(100 / 5, abs=2)


def test_an_urgent_layer_does_not_wait_for_its_turn():
    schedule = CertifySchedule(2, every=400)
    schedule.saw(1, column(1.0, 1.0), column(5, 5))
    schedule.saw(2, column(1.0, 1.5), column(5, 5))
    assert schedule.due(np.array([True, False])) == [1]
