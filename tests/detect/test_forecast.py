"""Forecasts against growth whose crossing is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.detect.forecast import LEAST_ROWS, ROWS, crossings, from_step


def growing(rate: float, steps: np.ndarray) -> np.ndarray:
    return np.exp(rate * steps)[None].astype(np.float32)


@given(st.floats(1e-4, 0.05), st.integers(1, 10))
def test_steady_growth_is_told_to_the_step(rate, gap):
    steps = np.arange(0, 60 * gap, gap)
    slope, left = crossings(steps, growing(rate, steps), np.float32([np.exp(rate * 1_000)]))
    assert slope[0] == pytest.approx(rate, rel=0.01, abs=1e-6)
    assert left[0] == pytest.approx(1_000 - steps[-1], rel=0.02)


def test_growth_that_changed_is_forgotten_in_some_twenty_rows():
    steps = np.arange(160)
    logs = np.concatenate((0.001 * steps[:80], 0.08 + 0.02 * (steps[80:] - 79)))
    slope, _ = crossings(steps, np.exp(logs)[None].astype(np.float32), np.float32([1e9]))
    assert slope[0] == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("sigma", "threshold"),
    [
        (np.ones(50), 2.0),  # stands still
        (np.exp(-0.01 * np.arange(50)), 2.0),  # shrinks
        (np.exp(0.01 * np.arange(50)), 1.2),  # is above already
        (3 * np.exp(-0.01 * np.arange(50)), 1.0),  # is above, and comes down
        (np.exp(0.01 * np.arange(LEAST_ROWS)), 2.0),  # one row too few
        (np.exp(0.01 * np.arange(50)), np.nan),  # has no threshold
        (np.exp(0.01 * np.arange(50)), 0.0),
        (np.full(50, np.nan), 2.0),
        (np.full(50, np.inf), 2.0),
        (np.zeros(50), 2.0),
    ],
)
def test_where_no_crossing_is_in_sight_none_is_told(sigma, threshold):
    steps = np.arange(len(sigma))
    _, left = crossings(steps, sigma[None].astype(np.float32), np.float32([threshold]))
    assert left.tolist() == [np.inf]


def test_rows_that_were_not_measured_are_stepped_over():
    steps = np.arange(80)
    sigma = growing(0.01, steps)
    sigma[0, 1::2] = np.nan
    slope, left = crossings(steps, sigma, np.float32([np.e]))
    assert slope[0] == pytest.approx(0.01, rel=1e-3)
    assert left[0] == pytest.approx(100 - 78, rel=0.02)  # from the newest that was measured


def test_it_looks_back_over_as_many_rows_whatever_lies_between_them():
    assert from_step(10_000, 1) == 10_000 - ROWS
    assert from_step(10_000, 10) == 10_000 - 10 * ROWS
    assert from_step(5, 1) == 0
