"""Buckets: widths, merging in any order, and what is not a number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import bits

from snc_service.store import downsampling
from snc_service.store.downsampling import Partial
from snc_service.wire import ABSENT, absent


@given(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1), st.integers(1, 5_000))
def test_the_width_is_the_smallest_power_of_two_that_fits(a, b, points):
    first, last = min(a, b), max(a, b)
    width = downsampling.width(points + 1, first, last, points)
    assert width & (width - 1) == 0
    assert last // width - first // width + 1 <= points
    if width > 1:
        half = width // 2
        assert last // half - first // half + 1 > points


def test_steps_that_fit_are_exact_however_far_apart():
    assert downsampling.width(3, 0, 2**53 - 1, 3) == 1


def random_values(seed: int, rows: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, n)).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, ABSENT], np.float32)
    where = rng.random((rows, n)) < 0.3
    values[where] = rng.choice(special, int(where.sum()))
    return values


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 40), st.integers(1, 9))
def test_one_pass_two_passes_and_pieces_agree(seed, rows, n, group):
    values = random_values(seed, rows, n)
    if seed % 3 == 0:
        values = np.nan_to_num(values, nan=1.0, posinf=2.0, neginf=3.0)
    keys = np.arange(n) // group
    once = Partial.of_groups(keys, values)
    twice = Partial.of_values(np.arange(n), values).grouped(keys)
    everyone = np.arange(rows)
    cuts = np.array_split(np.arange(n), 3)
    pieces = [
        (everyone, Partial.of_groups(keys[c], values[:, c])) for c in (cuts[2], cuts[0], cuts[1])
    ]
    by_rows = [(np.array([r]), Partial.of_groups(keys, values[r : r + 1])) for r in range(rows)]
    for other in (twice, downsampling.merged(rows, pieces), downsampling.merged(rows, by_rows)):
        for name in ("keys", "low", "high", "finite", "nonfinite"):
            np.testing.assert_array_equal(getattr(other, name), getattr(once, name))
        np.testing.assert_allclose(other.total, once.total, atol=1e-9)


def test_absent_counts_for_nothing_and_nan_stays_visible():
    values = np.array([[ABSENT, ABSENT, np.nan, ABSENT, 2, np.inf, ABSENT, ABSENT]], np.float32)
    partial = Partial.of_groups(np.arange(8) // 2, values)
    got = downsampling.finished(("a",), partial, 2)
    assert got.steps.tolist() == [2, 4]
    assert got.nonfinite.tolist() == [[1, 1]]
    assert np.isnan(got.mean[0, 0])
    assert not absent(got.mean).any()
    assert got.max[0, 1] == got.min[0, 1] == got.mean[0, 1] == 2


def test_a_row_without_a_value_where_another_has_one_is_absent():
    values = np.array([[1, 2], [ABSENT, 3]], np.float32)
    got = downsampling.finished(("a", "b"), Partial.of_values(np.arange(2), values), 1)
    assert absent(got.mean).tolist() == [[False, False], [True, False]]
    np.testing.assert_array_equal(bits(got.max), bits(values))


def test_a_mean_is_taken_in_double_precision():
    values = np.full((1, 2**16), 0.1, np.float32)
    values[0, 0] = 2.0**24
    partial = Partial.of_groups(np.zeros(2**16, np.int64), values)
    wanted = values.astype(np.float64).mean()
    assert downsampling.finished(("a",), partial, 2**16).mean[0, 0] == np.float32(wanted)


def test_large_values_do_not_overflow_their_sum():
    values = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    got = downsampling.finished(("a",), Partial.of_groups(np.zeros(4, np.int64), values), 4)
    assert got.mean[0, 0] == values[0, 0]


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_merges_to_nothing(rows):
    empty = downsampling.merged(rows, [(np.arange(rows), Partial.empty(rows))])
    got = downsampling.finished(tuple("abc"[:rows]), empty, 1)
    assert got.mean.shape == (rows, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_groups_of_any_size_are_reduced_like_one_by_one(size, first):
    keys = (np.arange(3 * size + 7) + first) // size
    values = np.random.default_rng(size).standard_normal((4, len(keys))).astype(np.float32)
    for made in (Partial.of_groups(keys, values), Partial.of_values(keys, values).grouped(keys)):
        assert made.keys.tolist() == np.unique(keys).tolist()
        for at, key in enumerate(made.keys):
            group = values[:, keys == key]
            np.testing.assert_array_equal(made.low[:, at], group.min(axis=1))
            np.testing.assert_array_equal(made.high[:, at], group.max(axis=1))
            np.testing.assert_allclose(
                made.total[:, at], group.sum(axis=1, dtype=float), rtol=1e-12
            )
            assert (made.finite[:, at] == group.shape[1]).all()


def test_planes_that_nobody_needs_are_not_made_and_read_as_nan():
    values = np.array([[1, np.nan, 3, 4], [5, 6, ABSENT, ABSENT]], np.float32)
    keys = np.arange(4) // 2
    whole = downsampling.finished(("a", "b"), Partial.of_groups(keys, values), 2)
    for column in ("min", "max", "mean"):
        planes = downsampling.planes_for((column,))
        parts = [
            (np.array([row]), Partial.of_groups(keys, values[row : row + 1], planes))
            for row in (0, 1)
        ]
        assert all(set(part.planes) == planes for _, part in parts)
        got = downsampling.finished(("a", "b"), downsampling.merged(2, parts, planes), 2)
        np.testing.assert_array_equal(got.nonfinite, whole.nonfinite)
        for other in ("min", "max", "mean"):
            wanted = getattr(whole, other) if other == column else np.full((2, 2), np.nan)
            np.testing.assert_array_equal(getattr(got, other), wanted)
