"""Events over REST: newest first, filtered, page by page, of one run and of all."""

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

TABLE = table_of("a", "b")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(tmp_path, clock):
    with serving_app(settings_in(tmp_path), clock=clock) as opened:
        register(opened, TABLE)
        clock.now += 1
        opened.send(batch_of(TABLE, steps=(7,), sigma=[[3, 9]], threshold=[[2, 4]]))
        yield opened


def rules(api, path=f"{RUN}/events", **params):
    return [each["rule"] for each in api.get(path, params=params).json()["items"]]


def test_a_breach_is_told_with_its_worst_layer(api):
    told = api.get(f"{RUN}/events", params={"rule": "breach"}).json()
    (event,) = told["items"]
    assert told["next"] is None
    assert {name: event[name] for name in ("run", "step", "severity", "layer", "layers")} == {
        "run": "r", "step": 7, "severity": "warning", "layer": "b", "layers": 2,
    }  # fmt: skip
    assert (event["value"], event["limit"], event["at"]) == (9, 4, "2025-11-22T08:26:41.000Z")
    assert "sigma" in event["message"]


def test_what_is_not_finite_is_an_event_with_null_for_its_value(api):
    api.send(batch_of(TABLE, 1, (8,), sigma=[[np.inf, 1]]))
    (event,) = api.get(f"{RUN}/events", params={"rule": "nonfinite"}).json()["items"]
    assert (event["layer"], event["value"], event["severity"]) == ("a", None, "critical")


def test_events_are_filtered(api):
    assert rules(api) == ["breach", "run_started"]
    assert rules(api, severity="info") == ["run_started"]
    assert rules(api, layer="b") == ["breach"]
    assert rules(api, layer="a") == []
    assert rules(api, from_step=1) == ["breach"]
    assert rules(api, from_step=8) == []
    assert rules(api, rule="rewound") == []


@pytest.mark.parametrize("path", [f"{RUN}/events", "/api/v1/events"])
def test_pages_together_are_the_whole_list(api, clock, path):
    for i in range(5):
        clock.now += 1
        api.put(f"{RUN}/policy", json={"entries": []})
        if i % 2:
            api.post("/api/v1/runs", json={"run": f"other{i}"})
    whole = [(e["run"], e["id"]) for e in api.get(path, params={"limit": 500}).json()["items"]]
    seen, cursor = [], None
    for _ in range(20):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.get(path, params=params).json()
        seen += [(e["run"], e["id"]) for e in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == whole
    assert len(seen) == (7 if path.startswith(RUN) else 9)


def test_the_list_of_all_runs_has_every_run(api):
    api.post("/api/v1/runs", json={"run": "other"})
    told = api.get("/api/v1/events").json()["items"]
    assert [(e["run"], e["rule"]) for e in told] == [
        ("other", "run_started"),
        ("r", "breach"),
        ("r", "run_started"),
    ]


@pytest.mark.parametrize("path", [f"{RUN}/events", "/api/v1/events"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("severity=bad", "severity"),
        ("rule=Breach", "rule"),
        ("layer=", "layer"),
        ("from_step=-1", "from_step"),
        ("cursor=e30", "cursor"),
        ("cursor=WyIxIiwiMiIsIjMiXQ", "cursor"),
        ("since=1", "since"),
    ],
)
def test_a_question_that_is_not_valid_is_422(api, path, query, field):
    assert_problem(api.get(f"{path}?{query}"), 422, "invalid", field)


def test_a_cursor_of_one_list_is_not_taken_by_another(api):
    cursor = api.get("/api/v1/events", params={"limit": 1}).json()["next"]
    told = api.get(f"{RUN}/events", params={"cursor": cursor})
    assert_problem(told, 422, "invalid", "cursor")
