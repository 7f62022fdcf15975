"""The policy over REST: versions, who wins when two write at once, and the way down to a job."""

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

TABLE = table_of("a")
PROJECT = "/api/v1/projects/p/policy"


def policy(threshold):
    return {"entries": [{"pattern": "*", "threshold": threshold, "action": "rescale"}]}


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path), clock=Clock()) as opened:
        opened.post("/api/v1/runs", json={"run": "r", "project": "p"})
        yield opened


def test_a_run_without_a_policy_has_the_empty_version_0(api):
    told = api.get(f"{RUN}/policy")
    assert told.headers["ETag"] == '"0"'
    assert told.json() == {
        "policy": {"entries": []},
        "policy_version": 0,
        "scope": "none",
        "author": "",
        "at": None,
    }


def test_a_policy_that_is_put_is_in_force(api):
    told = api.put(f"{RUN}/policy", json=policy("3x init"))
    assert told.status_code == 200
    assert told.headers["ETag"] == '"1"'
    assert told.json() == {
        "policy": policy("3x init"),
        "policy_version": 1,
        "scope": "run",
        "author": "anonymous",
        "at": "2025-11-22T08:26:40.000Z",
    }
    assert api.get(f"{RUN}/policy").json() == told.json()
    (changed, _) = api.get(f"{RUN}/events").json()["items"]
    assert changed["rule"] == "policy_changed"


def test_every_version_is_kept(api):
    for threshold in (1.0, 2.0, 3.0):
        api.put(f"{RUN}/policy", json=policy(threshold))
    told = api.get(f"{RUN}/policy/versions").json()
    assert told["next"] is None
    assert [(each["policy_version"], each["policy"]) for each in told["items"]] == [
        (3, policy(3.0)),
        (2, policy(2.0)),
        (1, policy(1.0)),
    ]


def test_of_two_who_change_the_same_version_the_second_is_told(api):
    tag = api.get(f"{RUN}/policy").headers["ETag"]
    first = api.put(f"{RUN}/policy", json=policy(1.0), headers={"If-Match": tag})
    assert first.status_code == 200
    second = api.put(f"{RUN}/policy", json=policy(2.0), headers={"If-Match": tag})
    assert assert_problem(second, 412, "precondition-failed")["current"] == 1
    assert api.get(f"{RUN}/policy").json()["policy"] == policy(1.0)
    again = api.put(f"{RUN}/policy", json=policy(2.0), headers={"If-Match": first.headers["ETag"]})
    assert again.json()["policy_version"] == 2


def test_if_match_may_be_any_version(api):
    told = api.put(f"{RUN}/policy", json=policy(1.0), headers={"If-Match": "*"})
    assert told.status_code == 200


@pytest.mark.parametrize("tag", ["1", 'W/"1"', '"x"', '"0", "1"', '""', '"99999999999999999999"'])
def test_a_tag_that_the_service_never_gave_matches_nothing(api, tag):
    told = api.put(f"{RUN}/policy", json=policy(1.0), headers={"If-Match": tag})
    assert_problem(told, 412, "precondition-failed", "If-Match")


def test_a_project_lends_its_policy_to_runs_without_their_own(api):
    assert api.get(PROJECT).json()["scope"] == "none"
    api.put(PROJECT, json=policy(5.0))
    told = api.get(f"{RUN}/policy").json()
    assert (told["policy"], told["scope"], told["policy_version"]) == (policy(5.0), "project", 1)
    api.put(f"{RUN}/policy", json=policy(1.0))
    told = api.get(f"{RUN}/policy").json()
    assert (told["policy"], told["scope"], told["policy_version"]) == (policy(1.0), "run", 2)
    api.put(PROJECT, json=policy(6.0), headers={"If-Match": '"1"'})
    assert api.get(f"{RUN}/policy").json()["policy"] == policy(1.0)
    versions = api.get(f"{PROJECT}/versions").json()["items"]
    assert [each["policy"] for each in versions] == [policy(6.0), policy(5.0)]
    late = api.put(PROJECT, json=policy(7.0), headers={"If-Match": '"1"'})
    assert_problem(late, 412, "precondition-failed")


def test_a_changed_project_policy_reaches_a_running_job_with_its_next_acknowledgement(api):
    register(api, TABLE)
    told = api.send(batch_of(TABLE, 0, (0,), sigma=[[1]])).json()
    assert "policy" not in told
    api.put(PROJECT, json=policy("2x rms"))
    told = api.send(batch_of(TABLE, 1, (1,), sigma=[[1]])).json()
    assert told["policy"] == policy("2x rms")


def test_an_unchanged_policy_is_304(api):
    tag = api.put(f"{RUN}/policy", json=policy(1.0)).headers["ETag"]
    assert api.get(f"{RUN}/policy", headers={"If-None-Match": tag}).status_code == 304
    api.put(f"{RUN}/policy", json=policy(2.0))
    assert api.get(f"{RUN}/policy", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize(
    "entry",
    [
        {"pattern": "*"},
        {"threshold": 1.0},
        {"pattern": "*", "threshold": 0},
        {"pattern": "*", "threshold": -1},
        {"pattern": "*", "threshold": 1e31},
        {"pattern": "*", "threshold": "3x"},
        {"pattern": "*", "threshold": "3 init"},
        {"pattern": "*", "threshold": True},
        {"pattern": "*", "threshold": [1]},
        {"pattern": "", "threshold": 1},
        {"pattern": "a\nb", "threshold": 1},
        {"pattern": "x" * 300, "threshold": 1},
        {"pattern": "*", "threshold": 1, "action": "explode"},
        {"pattern": "*", "threshold": 1, "note": "x"},
        7,
    ],
)
@pytest.mark.parametrize("path", [f"{RUN}/policy", PROJECT])
def test_a_policy_that_is_not_valid_is_422_and_changes_nothing(api, path, entry):
    told = api.put(path, json={"entries": [entry]})
    assert assert_problem(told, 422, "invalid")["field"]
    assert api.get(path).json()["policy_version"] == 0


@pytest.mark.parametrize("body", [{}, [], {"entries": {}}, {"entries": [], "x": 1}, "x"])
def test_a_body_that_is_no_policy_is_422(api, body):
    assert_problem(api.put(f"{RUN}/policy", json=body), 422, "invalid")


def test_a_policy_of_too_many_entries_is_422(api):
    entries = policy(1.0)["entries"] * 1025
    assert_problem(api.put(f"{RUN}/policy", json={"entries": entries}), 422, "invalid", "entries")


@pytest.mark.parametrize("project", ["-x", "a b", "x" * 65])
def test_a_project_has_a_name_that_fits_a_path(api, project):
    told = api.get(f"/api/v1/projects/{project}/policy")
    assert_problem(told, 422, "invalid", "project")


def test_versions_are_listed_page_by_page_newest_first(api):
    for factor in range(1, 6):
        body = {"entries": [{"pattern": "*", "threshold": float(factor)}]}
        assert api.put(f"{RUN}/policy", json=body).status_code == 200
    path, seen = f"{RUN}/policy/versions?limit=2", []
    cursor = ""
    while cursor is not None:
        told = api.get(path + (f"&cursor={cursor}" if cursor else "")).json()
        assert len(told["items"]) <= 2
        seen += [each["policy_version"] for each in told["items"]]
        cursor = told["next"]
    assert seen == [5, 4, 3, 2, 1]
    assert_problem(api.get(f"{RUN}/policy/versions?cursor=x"), 422, "invalid", "cursor")
