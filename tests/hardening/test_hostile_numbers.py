"""Numbers that are huge, negative or none: refused with 4xx."""

import json
from urllib.parse import quote

import pytest
from hostile import BATCHES, JSON, running_victim, surviving


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    with running_victim(tmp_path_factory.mktemp("hostile")) as victim:
        yield victim


@pytest.fixture(autouse=True)
def survived(victim):
    with surviving(victim):
        yield


NUMBERS = ["-1", "-0", "+1", "01", "1.5", "1e3", "1e999", "NaN", "Infinity", "0x10", "1_000",
           "9007199254740993", "9223372036854775808", "18446744073709551616", "-9" * 30,
           "9" * 5_000, "\u0661"]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_out_of_bounds_is_refused(victim, number):
    text = quote(number)
    for path in (f"runs?limit={text}", f"runs/r/heatmap?points={text}",
                 f"runs/r/heatmap?layers={text}", f"runs/r/layers/fc1.weight/history?points={text}",
                 f"runs/r/history?layer=fc1.weight&attempt={text}",
                 f"runs/r/events?limit={text}"):  # fmt: skip
        told = victim.http.get(f"/api/v1/{path}")
        assert told.status_code in (200, 404, 422), (path, told.text)
        if told.is_success:
            assert number in ("+1", "01", "-0", "1_000", "1e3"), (path, number)
    for field in ("seq", "attempt", "skipped", "dropped"):
        body = {"writer": "x", "seq": 0, "steps": [1], "scalars": {"a": [1]}, field: "?"}
        content = json.dumps(body).replace('"?"', number).encode()
        told = victim.http.post(BATCHES, content=content, headers=JSON)
        assert told.status_code in (400, 422) or number == "-0", told.text
    for body in ('{"writer":"x","seq":0,"steps":[?],"scalars":{"a":[1]}}',
                 '{"writer":"x","seq":0,"steps":[1],"scalars":{"a":[1]},"times":[?]}'):  # fmt: skip
        content = body.replace("?", number).encode()
        told = victim.http.post(BATCHES, content=content, headers=JSON)
        assert told.status_code in (200, 400, 409, 422), told.text


def test_a_value_that_float32_cannot_hold_is_refused(victim):
    for number in ("1e39", "-1e39", "1e999", '"1.5"', "true", "[]", "{}"):
        body = '{"writer":"f","seq":0,"steps":[1],"scalars":{"a":[?]}}'.replace("?", number)
        told = victim.http.post(BATCHES, content=body, headers=JSON)
        assert told.status_code == 422, (number, told.text)
