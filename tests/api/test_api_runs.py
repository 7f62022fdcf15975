"""Runs over REST: created, resumed, listed, finished, deleted."""

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
POLICY = {"entries": [{"pattern": "*", "threshold": "3x init", "action": "rescale"}]}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(tmp_path, clock):
    with serving_app(settings_in(tmp_path), clock=clock) as opened:
        yield opened


def test_creating_a_run_answers_with_what_its_job_needs(api):
    told = api.post("/api/v1/runs", json={"run": "r", "policy": POLICY})
    assert told.status_code == 201
    assert told.headers["Location"] == RUN
    assert told.json() == {
        "run": "r",
        "policy": POLICY,
        "policy_version": 1,
        "attempt": 0,
        "last_step": None,
        "commands": [],
    }


def test_a_run_without_an_id_gets_one(api):
    first, second = (api.post("/api/v1/runs", json={}).json()["run"] for _ in range(2))
    assert first != second
    assert api.get(f"/api/v1/runs/{first}").json()["name"] == first


def test_an_existing_id_resumes_the_run_and_keeps_its_policy(api):
    register(api, TABLE)
    api.send(batch_of(TABLE, steps=(41,), sigma=[[1, 2]]))
    api.post(f"{RUN}/finish", json={"state": "failed"})
    told = api.post("/api/v1/runs", json={"run": "r", "policy": POLICY})
    assert told.status_code == 200
    assert told.json()["last_step"] == 41
    assert api.get(RUN).json()["state"] == "active"
    told = api.post("/api/v1/runs", json={"run": "r", "policy": {"entries": []}})
    assert told.json()["policy"] == POLICY


def test_a_run_tells_what_it_was_created_with_and_what_it_has_reported(api):
    sent = {
        "run": "r",
        "name": "näme <b>",
        "project": "p-1",
        "config": {"lr": 0.1, "deep": [None, {"x": 1}]},
        "tags": ["t1", "t2"],
    }
    api.post("/api/v1/runs", json=sent)
    register(api, TABLE)
    metrics = {"sigma": [[1, 3]], "threshold": [[2, 2]], "scale": [[1, 0.5]]}
    api.send(batch_of(TABLE, steps=(7,), **metrics, scalars={"loss": [0.5]}))
    told = api.get(RUN).json()
    assert {name: told[name] for name in sent} == sent
    assert told["metrics"] == ["scale", "sigma", "threshold"]
    assert told["scalars"] == ["loss"]
    assert (told["last_step"], told["layers"]) == (7, 2)
    assert (told["breaches"], told["rescales"]) == (1, 1)
    assert (told["worst_ratio"], told["worst_layer"]) == (1.5, "b")


def test_times_are_rfc_3339_in_utc(api, clock):
    api.post("/api/v1/runs", json={"run": "r"})
    assert api.get(RUN).json()["created_at"] == "2025-11-22T08:26:40.000Z"


def test_runs_are_listed_newest_first_page_by_page(api, clock):
    for i in range(5):
        clock.now += 1
        api.post("/api/v1/runs", json={"run": f"r{i}"})
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.get("/api/v1/runs", params=params).json()
        seen += [item["run"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


def test_runs_are_filtered_by_project_and_state(api):
    api.post("/api/v1/runs", json={"run": "a", "project": "p"})
    api.post("/api/v1/runs", json={"run": "b", "project": "q"})
    api.post("/api/v1/runs", json={"run": "c", "project": "p"})
    api.post("/api/v1/runs/c/finish", json={"state": "finished"})

    def listed(**params):
        return [item["run"] for item in api.get("/api/v1/runs", params=params).json()["items"]]

    assert listed(project="p") == ["c", "a"]
    assert listed(project="p", state="active") == ["a"]
    assert listed(state="finished") == ["c"]
    assert listed(project="none") == []


def test_finishing_closes_a_run_once(api):
    api.post("/api/v1/runs", json={"run": "r"})
    assert api.post(f"{RUN}/finish", json={"state": "finished"}).json()["state"] == "finished"
    assert api.post(f"{RUN}/finish", json={"state": "failed"}).json()["state"] == "finished"
    rules = [event["rule"] for event in api.get(f"{RUN}/events").json()["items"]]
    assert rules == ["run_finished", "run_started"]


def test_deleting_a_run_leaves_nothing_of_it(api):
    register(api, TABLE)
    api.send(batch_of(TABLE, sigma=[[1, 2]]))
    assert api.delete(RUN).status_code == 204
    assert_problem(api.get(RUN), 404, "run-unknown")
    assert_problem(api.delete(RUN), 404, "run-unknown")
    assert api.get("/api/v1/runs").json()["items"] == []
    assert api.get("/api/v1/events").json()["items"] == []
    assert 'run="r"' not in api.get("/metrics").text


def test_an_unchanged_run_is_304_and_a_changed_one_is_not(api):
    register(api, TABLE)
    tag = api.get(RUN).headers["ETag"]
    assert tag.startswith('W/"')
    told = api.get(RUN, headers={"If-None-Match": tag})
    assert (told.status_code, told.content, told.headers["ETag"]) == (304, b"", tag)
    api.send(batch_of(TABLE, sigma=[[1, 2]]))
    assert api.get(RUN, headers={"If-None-Match": tag}).status_code == 200


def test_a_run_deleted_and_made_anew_does_not_answer_for_the_old_one(api, clock):
    api.post("/api/v1/runs", json={"run": "r", "name": "old"})
    tag = api.get(RUN).headers["ETag"]
    api.delete(RUN)
    clock.now += 1
    api.post("/api/v1/runs", json={"run": "r", "name": "new"})
    assert api.get(RUN, headers={"If-None-Match": tag}).json()["name"] == "new"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"run": "../etc"}', "run"),
        (b'{"run": ""}', "run"),
        (b'{"run": "' + b"x" * 65 + b'"}', "run"),
        (b'{"run": 7}', "run"),
        (b'{"run": "a\\nb"}', "run"),
        (b'{"project": "a/b"}', "project"),
        (b'{"name": "a\\u0000b"}', "name"),
        (b'{"name": "' + b"x" * 300 + b'"}', "name"),
        (b'{"tags": "t"}', "tags"),
        (b'{"tags": ["a", 1]}', "tags.1"),
        (b'{"config": []}', "config"),
        (b'{"config": {"lr": NaN}}', "config"),
        (b'{"config": {"lr": 1e999}}', "config"),
        (b'{"config": {"x": "' + b"x" * 300_000 + b'"}}', "config"),
        (b'{"policy": {"entries": [{"pattern": "*", "threshold": true}]}}', None),
        (b'{"policy": {"entries": [{"pattern": "*", "threshold": -1}]}}', None),
        (b'{"unknown": 1}', "unknown"),
        (b"[]", None),
        (b"null", None),
    ],
)
def test_a_body_that_is_not_valid_is_422_naming_the_field(api, body, field):
    told = api.post("/api/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(told, 422, "invalid", field)
    assert api.get("/api/v1/runs").json()["items"] == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"run": "a"', b"\xff\xfe", b'{"a": 1}}', b"\x00"])
def test_a_body_that_is_no_json_is_400(api, body):
    told = api.post("/api/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(told, 400, "body-malformed", "body")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"limit": "abc"}, "limit"),
        ({"limit": "1" * 400}, "limit"),
        ({"state": "asleep"}, "state"),
        ({"cursor": "!!"}, "cursor"),
        ({"cursor": "W10"}, "cursor"),
        ({"cursor": "x" * 2000}, "cursor"),
        ({"page": 2}, "page"),
    ],
)
def test_a_question_that_is_not_valid_is_422_naming_the_parameter(api, params, field):
    assert_problem(api.get("/api/v1/runs", params=params), 422, "invalid", field)


@pytest.mark.parametrize("state", ["active", "", 1, None])
def test_a_run_can_only_end_finished_or_failed(api, state):
    api.post("/api/v1/runs", json={"run": "r"})
    assert_problem(api.post(f"{RUN}/finish", json={"state": state}), 422, "invalid", "state")


def test_a_run_that_does_not_exist_is_404_everywhere(api):
    for path in ("", "/layers", "/layers/a/history", "/history?layer=a", "/heatmap", "/events",
                 "/policy", "/policy/versions", "/scalars/loss/history", "/stream"):  # fmt: skip
        assert_problem(api.get(f"/api/v1/runs/none{path}"), 404, "run-unknown")
    assert_problem(api.get("/metrics/runs/none"), 404, "run-unknown")
    assert_problem(api.post("/api/v1/runs/none/finish", json={}), 404, "run-unknown")
    assert_problem(api.put("/api/v1/runs/none/policy", json=POLICY), 404, "run-unknown")


def test_an_unchanged_list_is_304_and_a_changed_one_is_not(api):
    api.post("/api/v1/runs", json={"run": "r"})
    tag = api.get("/api/v1/runs").headers["ETag"]
    told = api.get("/api/v1/runs", headers={"If-None-Match": tag})
    assert (told.status_code, told.content) == (304, b"")
    api.post("/api/v1/runs", json={"run": "s"})
    told = api.get("/api/v1/runs", headers={"If-None-Match": tag})
    assert [run["run"] for run in told.json()["items"]] == ["s", "r"]
