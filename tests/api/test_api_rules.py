"""Rule settings over REST: read, changed, versioned, and refused with the bad key named."""

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

from snc_service.wire import RuleSettings

TABLE = table_of("a")
PROJECT = "/api/v1/projects/p/rules"
QUIET = {"rules": {"breach": {"on": False}}}


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path), clock=Clock()) as opened:
        opened.post("/api/v1/runs", json={"run": "r", "project": "p"})
        yield opened


def test_a_run_whose_rules_nobody_set_has_the_shipped_ones_as_version_0(api):
    told = api.get(f"{RUN}/rules")
    assert told.headers["ETag"] == '"0"'
    assert told.json() == {
        **RuleSettings().as_dict(),
        "rules_version": 0,
        "scope": "none",
        "author": "",
        "at": None,
    }


def test_what_is_put_is_in_force_and_what_it_leaves_out_is_as_shipped(api):
    given = {"rules": {"sigma_growth": {"limit": 0.5}, "lr_jump": {"on": False}}}
    told = api.put(f"{RUN}/rules", json=given)
    assert told.status_code == 200
    assert told.headers["ETag"] == '"1"'
    body = told.json()
    assert body["rules"] == RuleSettings.parse(given).as_dict()["rules"]
    assert (body["rules_version"], body["scope"], body["author"]) == (1, "run", "anonymous")
    assert api.get(f"{RUN}/rules").json() == body
    (changed, _) = api.get(f"{RUN}/events").json()["items"]
    assert changed["rule"] == "rules_changed"


def test_the_answer_of_get_can_be_put_again(api):
    api.put(f"{RUN}/rules", json=QUIET)
    body = api.get(f"{RUN}/rules").json()
    again = api.put(f"{RUN}/rules", json={"rules": body["rules"]})
    assert again.json()["rules"] == body["rules"]


def test_every_version_is_kept(api):
    for limit in (1.0, 2.0, 3.0):
        api.put(f"{RUN}/rules", json={"rules": {"lr_jump": {"limit": limit}}})
        api.put(PROJECT, json={"rules": {"lr_jump": {"limit": 10 * limit}}})
    for path, factor in ((f"{RUN}/rules", 1.0), (PROJECT, 10.0)):
        items = api.get(f"{path}/versions").json()["items"]
        assert [item["rules"]["lr_jump"]["limit"] for item in items] == [
            3.0 * factor,
            2.0 * factor,
            1.0 * factor,
        ]


def test_who_writes_against_an_old_version_is_refused_and_told_the_new_one(api):
    api.put(f"{RUN}/rules", json=QUIET, headers={"If-Match": '"0"'})
    refused = api.put(f"{RUN}/rules", json=QUIET, headers={"If-Match": '"0"'})
    problem = assert_problem(refused, 412, "precondition-failed")
    assert problem["current"] == 1
    assert "rule settings in force are version 1" in problem["detail"]
    assert api.put(f"{RUN}/rules", json=QUIET, headers={"If-Match": '"1"'}).status_code == 200


def test_who_has_the_newest_already_is_told_so(api):
    api.put(PROJECT, json=QUIET)
    assert api.get(PROJECT, headers={"If-None-Match": '"1"'}).status_code == 304
    assert api.get(f"{RUN}/rules").json()["scope"] == "project"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rules": {"sigma_jmp": {}}}, "rules.sigma_jmp"),
        ({"rules": {"sigma_jump": {"limits": 1}}}, "rules.sigma_jump.limits"),
        ({"rules": {"sigma_jump": {"limit": -1}}}, "rules.sigma_jump.limit"),
        ({"rules": {"sigma_jump": {"for_rows": "2"}}}, "rules.sigma_jump.for_rows"),
        ({"rules": {"sigma_jump": {"on": "yes"}}}, "rules.sigma_jump.on"),
        ({"rules": {"sigma_jump": 3}}, "rules.sigma_jump"),
        ({"rule": {}}, "rule"),
    ],
)
def test_the_key_that_is_wrong_is_named(api, body, field):
    problem = assert_problem(api.put(f"{RUN}/rules", json=body), 422, "invalid")
    assert problem["field"] == field
    assert api.get(f"{RUN}/rules").json()["rules_version"] == 0


def test_the_next_batch_obeys_and_its_events_say_which_version(api):
    register(api, TABLE)
    api.put(f"{RUN}/rules", json={"rules": {"breach": {"severity": "critical"}}})
    told = api.send(batch_of(TABLE, 0, (1,), sigma=[[3]], threshold=[[2]]))
    assert told.status_code == 200
    (event,) = api.get(f"{RUN}/events", params={"rule": "breach"}).json()["items"]
    assert (event["severity"], event["rules_version"]) == ("critical", 1)
    (changed,) = api.get(f"{RUN}/events", params={"rule": "rules_changed"}).json()["items"]
    assert changed["rules_version"] is None
