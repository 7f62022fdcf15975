"""Incidents and silences over REST."""

import pytest
from api_cases import Clock, assert_problem, batch_of, register, serving_app, settings_in, table_of
from listeners import until

TABLE = table_of("fc1.weight")
INCIDENTS, SILENCES = "/api/v1/incidents", "/api/v1/silences"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(tmp_path, clock):
    with serving_app(settings_in(tmp_path), clock=clock) as opened:
        yield opened


def breach(api, run="r", project="default"):
    """Let a run breach; return its incident once it is there."""
    api.post("/api/v1/runs", json={"run": run, "project": project})
    register(api, TABLE, run)
    batch = batch_of(TABLE, sigma=[[3.0]], threshold=[[2.0]], steps=(7,))
    assert api.send(batch, run=run).status_code == 200
    return until(lambda: api.get(INCIDENTS, params={"run": run}).json()["items"])[0]


def test_an_incident_says_what_was_first_where_and_when(api):
    incident = breach(api)
    assert api.get(f"{INCIDENTS}/{incident['incident']}").json() == incident
    event = api.get("/api/v1/events", params={"rule": "breach"}).json()["items"][0]
    only_listed = ("run", "rules_version", "record")
    assert incident["events"] == [{k: v for k, v in event.items() if k not in only_listed}]
    named = ("run", "project", "state", "severity", "rule", "layer", "step")
    assert {name: incident[name] for name in named} == {
        "run": "r",
        "project": "default",
        "state": "open",
        "severity": "warning",
        "rule": "breach",
        "layer": "fc1.weight",
        "step": 7,
    }  # fmt: skip
    assert incident["opened_at"] == "2025-11-22T08:26:40.000Z"
    assert (incident["resolved_at"], incident["acknowledged_by"]) == (None, None)


def test_incidents_are_paged_and_filtered(api):
    for run, project in (("a", "p"), ("b", "q"), ("c", "p")):
        breach(api, run, project)

    def runs(**query):
        return [each["run"] for each in api.get(INCIDENTS, params=query).json()["items"]]

    assert runs() == ["c", "b", "a"]
    assert runs(project="p") == ["c", "a"]
    assert runs(run="b", state="open") == ["b"]
    assert runs(state="resolved") == []
    page = api.get(INCIDENTS, params={"limit": 2}).json()
    assert [each["run"] for each in page["items"]] == ["c", "b"]
    assert runs(limit=2, cursor=page["next"]) == ["a"]
    assert_problem(api.get(INCIDENTS, params={"state": "bad"}), 422, "invalid", "state")
    assert_problem(api.get(INCIDENTS, params={"cursor": "W10"}), 422, "invalid", "cursor")


def test_the_first_to_acknowledge_is_named(api, clock):
    incident = breach(api)
    path = f"{INCIDENTS}/{incident['incident']}/acknowledge"
    clock.now += 60
    known = api.post(path, json={"comment": "on it"}).json()
    assert known["acknowledged_by"] == "anonymous"
    assert known["acknowledged_at"] == "2025-11-22T08:27:40.000Z"
    clock.now += 60
    assert api.post(path, json={}).json() == known
    audited = api.get("/api/v1/audit").json()["items"][0]
    assert (audited["action"], audited["detail"]) == ("incident_acknowledged", "on it")
    assert_problem(api.post(path, json={"comment": "a\nb"}), 422, "invalid", "comment")


@pytest.mark.parametrize("number", [1, 999])
def test_an_incident_that_there_is_not_is_404(api, number):
    assert_problem(api.get(f"{INCIDENTS}/{number}"), 404, "incident-unknown", "incident")
    told = api.post(f"{INCIDENTS}/{number}/acknowledge", json={})
    assert_problem(told, 404, "incident-unknown", "incident")


def test_an_incident_goes_with_its_run(api):
    incident = breach(api)
    api.delete("/api/v1/runs/r")
    assert_problem(api.get(f"{INCIDENTS}/{incident['incident']}"), 404, "incident-unknown")
    assert api.get(INCIDENTS).json()["items"] == []


def test_a_silence_is_listed_until_it_ends(api, clock):
    made = api.post(SILENCES, json={"run": "r*", "seconds": 600, "comment": "tuning"})
    assert made.status_code == 201
    silence = made.json()
    assert silence == {
        "silence": 1, "project": "*", "run": "r*", "rule": "*", "layer": "*",
        "until": "2025-11-22T08:36:40.000Z", "comment": "tuning", "author": "anonymous",
        "at": "2025-11-22T08:26:40.000Z",
    }  # fmt: skip
    assert api.get(SILENCES).json()["items"] == [silence]
    clock.now += 600
    assert api.get(SILENCES).json()["items"] == []
    assert_problem(api.delete(f"{SILENCES}/1"), 404, "silence-unknown", "silence")


def test_a_silence_can_be_ended(api):
    number = api.post(SILENCES, json={"seconds": 600}).json()["silence"]
    assert api.delete(f"{SILENCES}/{number}").status_code == 204
    assert_problem(api.delete(f"{SILENCES}/{number}"), 404, "silence-unknown", "silence")


def test_a_time_may_be_given_instead_of_seconds(api):
    body = {"until": "2025-11-22T10:00:00+01:00"}
    assert api.post(SILENCES, json=body).json()["until"] == "2025-11-22T09:00:00.000Z"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "seconds"),
        ({"seconds": 5, "until": "2025-11-22T09:00:00Z"}, "seconds"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": -5}, "seconds"),
        ({"seconds": 10**9}, "seconds"),
        ({"seconds": "2h"}, "seconds"),
        ({"until": "tomorrow"}, "until"),
        ({"until": "2025-11-22T09:00:00"}, "until"),
        ({"until": "2025-11-22T08:00:00Z"}, "until"),
        ({"until": "2999-01-01T00:00:00Z"}, "until"),
        ({"seconds": 5, "rule": ""}, "rule"),
        ({"seconds": 5, "run": "a\nb"}, "run"),
        ({"seconds": 5, "rul": "breach"}, "rul"),
    ],
)
def test_what_is_wrong_with_a_silence_is_named(api, body, field):
    assert_problem(api.post(SILENCES, json=body), 422, "invalid", field)
    assert api.get(SILENCES).json()["items"] == []
