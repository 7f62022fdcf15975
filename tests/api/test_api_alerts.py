"""The routing over REST: versions, masks, the key that is wrong; receivers, and tests of them."""

import pytest
from api_cases import Clock, assert_problem, serving_app, settings_in
from listeners import LOOPBACK, listening, nobody

PATH = "/api/v1/alerting"
SECRET = "a secret of sixteen characters"
MASK = "********"


def document(**changes):
    hook = {"type": "webhook", "url": "https://pager.example/tail-of-url", "secret": SECRET}
    return {
        "receivers": {"pager": {**hook, **changes}},
        "routes": [{"receivers": ["pager"], "project": "llm-*"}],
    }


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path, alert_networks=LOOPBACK), clock=Clock()) as opened:
        yield opened


def test_nobody_is_told_before_somebody_sets_a_routing(api):
    told = api.get(PATH)
    assert told.headers["ETag"] == '"0"'
    assert told.json() == {
        "alerting": {"receivers": {}, "routes": [], "service_url": None},
        "alerting_version": 0,
        "author": "",
        "at": None,
    }


def test_what_is_put_is_in_force_and_answered_without_its_secrets(api):
    told = api.put(PATH, json=document())
    assert told.status_code == 200
    assert told.headers["ETag"] == '"1"'
    answer = told.json()
    assert (answer["author"], answer["at"]) == ("anonymous", "2025-11-22T08:26:40.000Z")
    assert answer["alerting"]["receivers"]["pager"] == {
        "type": "webhook",
        "url": f"https://pager.example/{MASK}",
        "secret": MASK,
    }
    assert answer["alerting"]["routes"][0]["repeat_seconds"] == 14_400
    assert api.get(PATH).json() == answer
    assert api.get(PATH, headers={"If-None-Match": '"1"'}).status_code == 304


def test_what_was_read_can_be_changed_and_put_again(api):
    api.put(PATH, json=document())
    read = api.get(PATH).json()["alerting"]
    read["routes"][0]["severity"] = "critical"
    assert api.put(PATH, json=read).status_code == 200
    kept = api.service.store.alert_routing.current().content["receivers"]["pager"]
    assert (kept["url"], kept["secret"]) == ("https://pager.example/tail-of-url", SECRET)


def test_a_mask_for_another_address_is_refused(api):
    api.put(PATH, json=document())
    stolen = document(url="https://evil.example/", secret=MASK)
    problem = assert_problem(api.put(PATH, json=stolen), 422, "invalid", "receivers.pager.secret")
    assert "given again" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (document(secret="short"), "receivers.pager.secret"),
        (document(url="file:///etc/passwd"), "receivers.pager.url"),
        (document(type="carrier pigeon"), "receivers.pager.type"),
        ({"routes": [{"receivers": ["ghost"]}]}, "routes.0.receivers"),
        ({"receivers": {}, "rotes": []}, "rotes"),
        ({"receivers": [1]}, "receivers"),
    ],
)
def test_the_key_that_is_wrong_is_named(api, body, field):
    assert_problem(api.put(PATH, json=body), 422, "invalid", field)
    assert api.get(PATH).json()["alerting_version"] == 0


def test_of_two_who_change_the_same_version_the_second_is_told(api):
    first = api.put(PATH, json=document(), headers={"If-Match": '"0"'})
    assert first.status_code == 200
    second = api.put(PATH, json=document(), headers={"If-Match": '"0"'})
    assert assert_problem(second, 412, "precondition-failed")["current"] == 1
    bad = api.put(PATH, json=document(), headers={"If-Match": "one"})
    assert_problem(bad, 412, "precondition-failed", "If-Match")


def test_every_version_is_kept_and_masked_and_in_the_audit_log(api):
    api.put(PATH, json=document())
    api.put(PATH, json={"receivers": {}})
    told = api.get(f"{PATH}/versions")
    assert [each["alerting_version"] for each in told.json()["items"]] == [2, 1]
    assert "tail-of-url" not in told.text
    assert SECRET not in told.text
    entries = api.get("/api/v1/audit").json()["items"]
    assert [each["detail"] for each in entries] == ["version 2", "version 1"]
    assert {each["action"] for each in entries} == {"alerting_changed"}


def test_receivers_are_listed_before_they_were_told_anything(api):
    api.put(PATH, json=document())
    assert api.get(f"{PATH}/receivers").json()["items"] == [
        {
            "receiver": "pager",
            "type": "webhook",
            "place": "https://pager.example",
            "waiting": 0,
            "failures": 0,
            "error": None,
            "told_at": None,
        }
    ]


def test_a_test_says_what_became_of_it_and_shows_no_answer_of_the_receiver(api):
    with listening() as there, nobody() as port:
        both = document(url=there.url)
        both["receivers"]["gone"] = {"type": "slack", "url": f"http://127.0.0.1:{port}/x"}
        api.put(PATH, json=both)
        well = api.post(f"{PATH}/test", json={"receiver": "pager"}).json()
        assert (well["outcome"], well["detail"]) == ("delivered", "")
        gone = api.post(f"{PATH}/test", json={"receiver": "gone"}).json()
        assert gone["outcome"] == "failed"
        assert gone["detail"] == f"127.0.0.1:{port} cannot be talked to: Connection refused"
    ghost = api.post(f"{PATH}/test", json={"receiver": "ghost"})
    assert_problem(ghost, 422, "invalid", "receiver")
