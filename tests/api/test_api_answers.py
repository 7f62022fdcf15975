"""Answers: short numbers that mean what was measured, null for what is not finite, tags, times."""

import asyncio
import json

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from snc_service.api.conventions import answers
from snc_service.api.conventions.answers import answer, rfc3339, seven_digits, shortest

GET = Request({"type": "http", "method": "GET", "headers": []})
floats = st.lists(st.floats(width=32), min_size=1, max_size=20)


@given(st.sampled_from([0, 1, 16, 17, 50]), st.sampled_from([0, 1, 4_096, 5_000]))
def test_an_answer_made_in_pieces_is_the_whole(num_rows, num_numbers):
    numbers = [float(n) for n in range(num_numbers)]
    rows = [[n, None, 'a"b'] for n in range(num_rows)]
    content = {'a"': numbers, "b": rows, "c": {"d": rows}, "e": [{"f": rows}] * num_rows, "g": None}
    for each in (content, rows, numbers):
        assert json.loads(answer(GET, each).body) == each
        assert answer(GET, each).body == to_json(each)


def test_no_call_for_a_large_answer_keeps_other_threads_waiting(monkeypatch):
    """A call of the encoder holds the lock of the interpreter until it is done."""
    sizes = []

    def encoded(value, **how):
        body = to_json(value, **how)
        sizes.append(len(body))
        return body

    monkeypatch.setattr(answers, "to_json", encoded)
    content = {"max": [[0.1] * 500] * 500, "steps": list(range(10_000))}
    whole = len(answer(GET, content).body)
    assert whole > 1_000_000
    assert max(sizes) < whole / 20


@given(floats)
def test_a_number_is_read_back_as_the_float32_that_was_measured(numbers):
    values = np.array(numbers, np.float32)
    back = np.array(json.loads(json.dumps(shortest(values))), np.float64).astype(np.float32)
    np.testing.assert_array_equal(back, values)


@given(floats)
def test_a_number_is_the_shortest_that_means_the_measured_one(numbers):
    values = np.array(numbers, np.float32)
    for number, value in zip(shortest(values), values, strict=True):
        if np.isfinite(value):
            assert number == float(str(value))  # numpy prints the shortest


@pytest.mark.parametrize(
    "number", [1.1, 0.001, 3.4e38, 1e-38, 1e-45, 123456.7, 16777216.0, -2.5, 0]
)
def test_what_was_sent_as_a_short_number_is_read_as_that(number):
    assert shortest(np.array([[number]], np.float32)) == [[number]]


@given(floats)
def test_seven_digits_are_within_half_of_the_seventh(numbers):
    values = np.array(numbers, np.float32)
    back = np.array(seven_digits(values)).astype(np.float32)
    np.testing.assert_allclose(back, values, rtol=5e-7)


def test_times_are_rfc_3339_in_utc_with_milliseconds():
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_763_800_000.1239) == "2025-11-22T08:26:40.123Z"


def told(content, **headers):
    """Return what a client gets for ``content``."""
    app = FastAPI()

    @app.get("/")
    def get(request: Request) -> Response:
        return answer(request, content)

    async def ask():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/", headers=headers)

    return asyncio.run(ask())


def test_what_is_not_finite_is_null_and_never_a_bare_nan():
    content = {"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5], "c": "NaN"}
    assert told(content).json() == {"a": None, "b": [None, None, 1.5], "c": "NaN"}


def test_an_answer_that_is_the_same_again_need_not_be_sent_again():
    tag = told([1, 2]).headers["ETag"]
    again = told([1, 2], **{"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert told([1, 3], **{"If-None-Match": tag}).json() == [1, 3]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("", False),
    ],
)
def test_long_answers_are_compressed_for_those_who_ask(accepted, packed):
    response = told(["x" * 5000], **{"Accept-Encoding": accepted})
    assert (response.headers.get("Content-Encoding") == "gzip") is packed
    assert response.json() == ["x" * 5000]
    assert response.headers["Vary"] == "Accept-Encoding"
