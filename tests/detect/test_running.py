"""Running quantities of a run: a rule's hysteresis, deviations of a scalar, the rise of a loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.detect.running import FIRST_ROWS, Deviation, Firing, Rise


def rises(values) -> list[float]:
    rise = Rise()
    return [rise.advance(float(value)) for value in values]


def edges(firing: Firing, above: list[bool], hold: int, rest: int) -> list[int]:
    counts = np.ones(len(above), np.int64)
    return firing.advance(np.array(above), hold * counts, rest * counts).edges


@pytest.mark.parametrize(("quiet", "expected"), [(7, [0]), (8, [0, 9])])
def test_a_rule_speaks_again_after_more_than_its_rest(quiet, expected):
    assert edges(Firing(), [True, *[False] * quiet, True], 1, 7) == expected


def test_rows_that_are_passed_over_break_a_streak_and_count_as_quiet():
    passed, fed = Firing(), Firing()
    for firing in (passed, fed):
        assert edges(firing, [True], 2, 7) == []
    passed.pass_over(3)
    assert edges(fed, [False] * 3, 2, 7) == []
    assert passed == fed
    assert edges(passed, [True], 2, 7) == []
    assert edges(passed, [True], 2, 7) == [0]


def test_a_score_is_in_standard_deviations_of_normal_noise():
    deviation = Deviation()
    scores = [deviation.score(x, 1e-9) for x in np.random.default_rng(0).standard_normal(4_000)]
    # The mean and the deviation are of some 30 rows, which adds a tenth to the spread.
    assert np.std(scores[100:]) == pytest.approx(1.0, abs=0.13)


def test_the_first_values_count_alike_and_each_later_one_three_percent():
    deviation = Deviation()
    values = np.random.default_rng(0).random(10)
    for value in values:
        deviation.score(value, 1e-9)
    assert deviation.mean == pytest.approx(values.mean(), rel=1e-12)
    for _ in range(300):
        deviation.score(0.0, 1e-9)
        deviation.score(1.0, 1e-9)
    before = deviation.mean
    deviation.score(1.0, 1e-9)
    assert deviation.mean - before == pytest.approx(0.03 * (1.0 - before), rel=1e-9)


def test_a_loss_that_falls_or_stands_has_not_risen():
    assert rises(np.linspace(3, 1, 300)) == [0.0] * 300
    assert rises([2.0] * 300) == [0.0] * 300


def test_a_loss_that_doubled_for_good_has_risen_by_half_of_its_size():
    found = rises([1.0] * 100 + [2.0] * 300)
    assert found[99] == 0.0
    assert found[-1] == pytest.approx(0.5, abs=1e-3)
    assert found[100] < 0.06  # one row says little


def test_the_first_rows_say_what_is_usual():
    found = rises([5.0, 1.0] * (FIRST_ROWS // 2) + [3.0] * 100)
    assert max(found) == pytest.approx(0.0, abs=0.02)


def test_a_loss_below_zero_rises_as_well():
    assert rises([-3.0] * 100 + [-1.5] * 300)[-1] == pytest.approx(0.5, abs=1e-3)
    assert rises([-1.0] * 100 + [1.0] * 300)[-1] == pytest.approx(2.0, abs=1e-3)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=80))
def test_a_rise_is_never_below_zero_nor_above_two(values):
    assert all(0 <= rise <= 2.000001 for rise in rises(values))


@given(st.floats(0.1, 1e6))
def test_a_rise_does_not_depend_on_the_unit_of_the_loss(unit):
    values = 1 + np.random.default_rng(0).random(100)
    np.testing.assert_allclose(rises(unit * values), rises(values), rtol=1e-6, atol=1e-12)
