"""Runs side by side over REST."""

from __future__ import annotations

import pytest
from api_cases import assert_problem, batch_of, register, serving_app, settings_in, table_of

PATH = "/api/v1/compare"


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        for run, names, steps in (("p", ("a", "b"), 4), ("q", ("b", "c"), 9), ("s", ("c",), 2)):
            layers = table_of(*names)
            register(opened, layers, run)
            sigma = [[step + place for place in range(len(names))] for step in range(steps)]
            told = opened.send(batch_of(layers, 0, tuple(range(steps)), sigma=sigma), run=run)
            assert told.status_code == 200
        yield opened


def test_a_layer_is_found_by_its_name_whatever_its_place_in_the_model(api):
    told = api.get(PATH, params={"run": ["q", "p", "s"], "layer": "b"}).json()
    assert [run["run"] for run in told["runs"]] == ["q", "p"]
    assert told["without"] == ["s"]
    assert told["runs"][0]["mean"] == list(range(9))
    assert told["runs"][1]["mean"] == [1, 2, 3, 4]


def test_each_run_has_buckets_of_its_own_length(api):
    told = api.get(PATH, params={"run": ["p", "q"], "layer": "b", "points": 4}).json()
    assert [run["bucket_steps"] for run in told["runs"]] == [1, 4]
    alone = api.get("/api/v1/runs/q/layers/b/history", params={"points": 4}).json()
    assert {name: told["runs"][1][name] for name in ("steps", "mean", "min", "max")} == {
        name: alone[name] for name in ("steps", "mean", "min", "max")
    }


def test_the_tag_changes_with_each_of_the_runs(api):
    asked = {"run": ["p", "q"], "layer": "b"}
    tag = api.get(PATH, params=asked).headers["ETag"]
    assert api.get(PATH, params=asked, headers={"If-None-Match": tag}).status_code == 304
    layers = table_of("b", "c")
    assert api.send(batch_of(layers, 1, (20,), sigma=[[1, 1]]), run="q").status_code == 200
    assert api.get(PATH, params=asked, headers={"If-None-Match": tag}).status_code == 200


def test_runs_and_layers_that_are_not_there_are_named(api):
    told = api.get(PATH, params={"run": ["p", "nobody"], "layer": "b"})
    assert "nobody" in assert_problem(told, 404, "run-unknown")["detail"]
    assert_problem(api.get(PATH, params={"run": "p", "layer": "z"}), 404, "layer-unknown")
    assert_problem(api.get(PATH, params={"layer": "b"}), 422, "invalid", "run")
    assert_problem(api.get(PATH, params={"run": "../p", "layer": "b"}), 422, "invalid")


def test_a_token_of_one_project_compares_its_own_runs_only(api):
    def token(name: str, **body):
        told = api.post("/api/v1/tokens", json={"name": name, "scopes": ["admin"]} | body)
        assert told.status_code == 201, told.text
        return {"Authorization": f"Bearer {told.json()['token']}"}

    root = token("root")
    api.post("/api/v1/runs", json={"run": "mine", "project": "ours"}, headers=root)
    body = {"name": "ours", "scopes": ["read"], "project": "ours"}
    secret = api.post("/api/v1/tokens", json=body, headers=root).json()["token"]
    ours = {"Authorization": f"Bearer {secret}"}
    told = api.get(PATH, params={"run": ["mine", "p"], "layer": "b"}, headers=ours)
    assert "'p'" in assert_problem(told, 404, "run-unknown")["detail"]
    assert_problem(
        api.get(PATH, params={"run": "mine", "layer": "b"}, headers=ours), 404, "layer-unknown"
    )
