"""The worst layers over REST."""

from __future__ import annotations

import numpy as np
import pytest
from api_cases import RUN, assert_problem, batch_of, register, serving_app, settings_in, table_of

LAYERS = table_of("a", "b", "c")


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, LAYERS)
        yield opened


def feed(api):
    sigma = [[1.1, 2, 1], [3.3, 2, np.nan], [1, 2.5, 1]]
    threshold = [[1, 1, 1], [3, 1, 1], [3, 1, 1]]
    told = api.send(batch_of(LAYERS, 0, (10, 11, 12), sigma=sigma, threshold=threshold))
    assert told.status_code == 200


def test_the_ratio_is_that_of_single_steps_and_broken_layers_come_first(api):
    feed(api)
    told = api.get(f"{RUN}/worst").json()
    assert told["metric"] == "ratio"
    assert told["items"] == [
        {"layer": "c", "value": 1, "step": 10, "nonfinite": 1},
        {"layer": "b", "value": 2.5, "step": 12, "nonfinite": 0},
        {"layer": "a", "value": 1.1, "step": 10, "nonfinite": 0},
    ]


def test_a_metric_a_range_and_a_number_of_layers_can_be_asked_for(api):
    feed(api)
    asked = {"metric": "sigma", "from_step": 11, "k": 2}
    items = api.get(f"{RUN}/worst", params=asked).json()["items"]
    assert [(item["layer"], item["value"]) for item in items] == [("c", 1), ("a", 3.3)]


def test_an_unchanged_answer_is_not_sent_again(api):
    feed(api)
    tag = api.get(f"{RUN}/worst").headers["ETag"]
    assert api.get(f"{RUN}/worst", headers={"If-None-Match": tag}).status_code == 304
    assert api.get(f"{RUN}/worst?k=2", headers={"If-None-Match": tag}).status_code == 200


def test_bad_questions_are_refused(api):
    assert_problem(api.get("/api/v1/runs/nobody/worst"), 404, "run-unknown")
    assert_problem(api.get(f"{RUN}/worst?k=0"), 422, "invalid", "k")
    assert_problem(api.get(f"{RUN}/worst?points=5"), 422, "invalid", "points")
    assert api.get(f"{RUN}/worst").json()["items"] == []
