"""Which layer went first, which is next, and planned changes, over REST."""

import numpy as np
import pytest
from api_cases import (
    RUN,
    Clock,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)

TABLE = table_of("fc1", "fc2", "fc3")


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path), clock=Clock()) as opened:
        register(opened, TABLE)
        yield opened


def train(api, sigma, first=0, seq=0, threshold=90.0, apart=1):
    steps = tuple(range(first, first + apart * len(sigma), apart))
    told = api.send(
        batch_of(
            TABLE,
            seq,
            steps,
            scalars={"loss": [1.0] * len(steps)},
            sigma=sigma,
            threshold=np.full(np.shape(sigma), threshold),
        )
    )
    assert told.status_code == 200


def leaving() -> np.ndarray:
    sigma = np.ones((80, 3))
    sigma[60:, 2] *= 1.3
    sigma[65:, 0] *= 1.5
    return sigma


def test_a_healthy_run_has_no_onset(api):
    told = api.get(f"{RUN}/onset").json()
    nothing = {"run": "r", "step": None, "alarm_step": None, "total": 0, "items": [], "next": None}
    assert told == nothing
    train(api, np.ones((80, 3)))
    assert api.get(f"{RUN}/onset").json()["total"] == 0


def test_layers_come_in_the_order_in_which_they_left_their_band(api):
    train(api, leaving())
    told = api.get(f"{RUN}/onset").json()
    assert (told["step"], told["total"]) == (60, 2)
    assert [(i["layer"], i["step"], i["rule"]) for i in told["items"]] == [
        ("fc3", 60, "sigma_jump"),
        ("fc1", 65, "sigma_jump"),
    ]
    assert told["items"][0]["times_limit"] == pytest.approx(np.log(1.3) / 0.1, rel=1e-3)
    few = api.get(f"{RUN}/onset", params={"limit": 1}).json()
    assert (len(few["items"]), few["total"]) == (1, 2)


def test_a_layer_that_grows_is_traced_back_from_its_alarm_to_where_it_began_to_grow(api):
    """The second layer grows from step 300 on; the third leaps later, and is told at once."""
    sigma = np.exp(np.random.default_rng(3).normal(0, 0.002, (400, 3)))
    sigma[300:, 1] *= np.exp(0.03 * np.arange(100))
    sigma[330:, 2] *= 1.5
    train(api, sigma)
    told = api.get(f"{RUN}/onset").json()
    slow, quick = told["items"]
    assert (slow["layer"], quick["layer"]) == ("fc2", "fc3")
    assert 300 <= slow["step"] <= 305
    assert slow["alarm_step"] > 310
    assert (quick["step"], quick["alarm_step"]) == (330, 330)
    assert told["step"] == slow["step"]
    # The alarm is what the first event, and with it the incident, names.
    events = api.get(f"{RUN}/events").json()["items"]
    first = min(each["step"] for each in events if each["layer"])
    assert told["alarm_step"] == first


@pytest.mark.parametrize(("apart", "later"), [(100, 1), (1, 1_000)])
def test_rows_at_other_distances_after_the_alarm_do_not_move_the_onset(api, apart, later):
    sigma = np.exp(np.random.default_rng(3).normal(0, 0.002, (600, 3)))
    sigma[500:, 1] *= np.exp(0.03 * np.arange(100))
    train(api, sigma, apart=apart)
    before = api.get(f"{RUN}/onset").json()
    assert 500 * apart <= before["step"] <= 505 * apart < before["alarm_step"]
    train(api, sigma[-1:], first=599 * apart + later, seq=1)
    assert api.get(f"{RUN}/onset").json()["step"] == before["step"]


def test_an_onset_that_stays_is_304_and_a_new_batch_makes_it_new(api):
    train(api, leaving())
    tag = api.get(f"{RUN}/onset").headers["ETag"]
    assert api.get(f"{RUN}/onset", headers={"If-None-Match": tag}).status_code == 304
    train(api, np.ones((1, 3)), first=80, seq=1)
    assert api.get(f"{RUN}/onset", headers={"If-None-Match": tag}).status_code == 200


def test_a_layer_on_its_way_to_its_threshold_is_told_with_the_steps_that_are_left(api):
    sigma = np.ones((80, 3))
    sigma[:, 1] = np.exp(0.002 * np.arange(80))
    train(api, sigma, threshold=2.0)
    (item,) = api.get(f"{RUN}/forecast").json()["items"]
    left = np.log(2) / 0.002 - 79
    assert (item["layer"], item["step"], item["threshold"]) == ("fc2", 79, 2.0)
    assert item["steps"] == pytest.approx(left, rel=0.01)
    assert item["at_step"] == 79 + item["steps"]
    assert item["earliest_step"] < item["at_step"] < item["latest_step"]
    assert item["growth_per_step"] == pytest.approx(0.002, rel=0.01)


def test_nothing_is_told_of_what_is_far_off_and_of_what_has_no_threshold(api):
    sigma = np.exp(0.0005 * np.arange(80))[:, None] * np.ones((1, 3))
    train(api, sigma, threshold=90.0)
    assert api.get(f"{RUN}/forecast").json()["items"] == []
    api.send(batch_of(TABLE, 1, (80,), sigma=[[1, 1, 1]]))
    assert api.get(f"{RUN}/forecast").status_code == 200


def test_rows_ten_steps_apart_are_looked_at_ten_times_as_far(api):
    sigma = np.exp(0.002 * 10 * np.arange(40))[:, None] * np.ones((1, 3))
    steps = tuple(range(0, 400, 10))
    api.send(batch_of(TABLE, 0, steps, sigma=sigma, threshold=np.full((40, 3), 20.0)))
    items = api.get(f"{RUN}/forecast").json()["items"]
    assert [item["layer"] for item in items] == ["fc1", "fc2", "fc3"]
    assert items[0]["steps"] == pytest.approx(np.log(20) / 0.002 - 390, rel=0.01)


def test_a_planned_change_is_marked_listed_and_told(api):
    told = api.post(f"{RUN}/annotations", json={"step": 70, "text": "new data", "quiet_steps": 40})
    assert told.status_code == 201
    assert told.json() == {
        "id": 1,
        "step": 70,
        "text": "new data",
        "quiet_steps": 40,
        "author": "anonymous",
        "at": "2025-11-22T08:26:40.000Z",
    }
    assert api.get(f"{RUN}/annotations").json() == {"items": [told.json()], "next": None}
    (event,) = api.get(f"{RUN}/events", params={"rule": "annotation"}).json()["items"]
    assert (event["step"], event["message"], event["severity"]) == (70, "new data", "info")


def test_a_leap_that_was_planned_raises_no_alarm_and_one_that_was_not_does(api):
    api.post(f"{RUN}/annotations", json={"step": 60, "text": "new data"})
    train(api, leaving())
    events = api.get(f"{RUN}/events").json()["items"]
    assert {event["rule"] for event in events} == {"annotation", "run_started"}
    grown = np.ones((40, 3)) * [1.5, 1.0, 1.3]
    train(api, grown, first=80, seq=1)
    train(api, 1.4 * grown, first=120, seq=2)
    (event,) = api.get(f"{RUN}/events", params={"rule": "sigma_jump"}).json()["items"]
    assert event["step"] == 120


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"text": "x"}, "step"),
        ({"step": -1, "text": "x"}, "step"),
        ({"step": 1.5, "text": "x"}, "step"),
        ({"step": 1, "text": ""}, "text"),
        ({"step": 1, "text": "a\nb"}, "text"),
        ({"step": 1, "text": "x" * 257}, "text"),
        ({"step": 1, "text": "x", "quiet_steps": -1}, "quiet_steps"),
        ({"step": 1, "text": "x", "quiet_steps": 10**9}, "quiet_steps"),
        ({"step": 1, "text": "x", "quiet": 5}, "quiet"),
    ],
)
def test_an_annotation_that_is_none_is_refused_by_the_name_of_its_field(api, body, field):
    assert_problem(api.post(f"{RUN}/annotations", json=body), 422, "invalid", field)
    assert api.get(f"{RUN}/annotations").json()["items"] == []


def test_a_run_that_there_is_not_has_none_of_it(api):
    for name in ("onset", "forecast", "annotations", "rules"):
        assert_problem(api.get(f"/api/v1/runs/gone/{name}"), 404, "run-unknown")
