"""Cursors: opaque, exact on their way back, and never trusted."""

import json
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.api.conventions import cursors
from snc_service.problems import Problem

numbers = st.floats(allow_nan=False, allow_infinity=False, max_value=1e299, min_value=-1e299)


@given(numbers, st.integers(-(2**63) + 1, 2**63 - 1), st.text(max_size=20))
def test_a_key_comes_back_as_it_was(number, whole, text):
    key = (number, whole, text)
    assert cursors.load(cursors.dump(key), float, int, str) == key


def test_the_end_of_a_list_has_no_cursor_and_its_start_no_key():
    assert cursors.dump(None) is None
    assert cursors.load(None, int) is None


def forged(value):
    return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "", "!", "=", "ü", "e", "AAAA", forged(None), forged({}), forged(7), forged([]),
        forged([1, 2]), forged(["1"]), forged([True]), forged([None]), forged([1.5]),
        forged([2**63]), forged([[1]]), "W" * 1000,
    ],
)  # fmt: skip
def test_a_cursor_that_the_service_did_not_make_is_422(cursor):
    with pytest.raises(Problem) as refused:
        cursors.load(cursor, int)
    assert (refused.value.status_code, refused.value.field) == (422, "cursor")


@pytest.mark.parametrize("text", ["[NaN]", "[Infinity]", "[1e999]", "[" * 2000, "[1e300]"])
def test_a_forged_number_that_is_not_finite_is_422(text):
    with pytest.raises(Problem):
        cursors.load(urlsafe_b64encode(text.encode()).decode(), float)


@given(st.text(max_size=50))
def test_whatever_stands_in_a_cursor_it_is_a_key_or_422(cursor):
    try:
        key = cursors.load(cursor, int)
    except Problem:
        return
    assert key is not None
    assert [type(part) for part in key] == [int]
