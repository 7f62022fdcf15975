"""What one run or one defect does to the alerts of others: nothing."""

import threading

import pytest
from api_cases import Clock, batch_of, register, serving_app, settings_in
from listeners import LOOPBACK, listening, says, until
from test_alerts import TABLE, Watched

from snc_service.alerts import worker


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.05)
    clock = Clock()
    with serving_app(settings_in(tmp_path, alert_networks=LOOPBACK), clock=clock) as api:
        yield Watched(api, clock)


def test_a_message_that_cannot_be_made_is_a_counted_failure_and_holds_up_no_other(
    watched, monkeypatch
):
    original = worker.tell

    def tell(receiver, message, allowed):
        if message.incident.run == "r":
            raise ZeroDivisionError("a defect of a sender")
        original(receiver, message, allowed)

    monkeypatch.setattr(worker, "tell", tell)
    with listening() as hook:
        watched.route(hook=hook.url)
        watched.train(sigma=3.0)
        until(lambda: watched.deliveries()["failed"] == 1)
        register(watched.api, TABLE, run="other")
        batch = batch_of(TABLE, sigma=[[3.0, 1.0]], threshold=[[2.0, 2.0]])
        assert watched.api.send(batch, run="other").status_code == 200
        watched.told(1)
    assert [each.json()["run"] for each in hook.heard] == ["other"]
    assert watched.health()["failures"] == 1
    assert "ZeroDivisionError" in watched.health()["error"]
    ((delivery, _),) = watched.api.service.store.deliveries.due("hook", "r", watched.clock() + 3.0)
    assert (delivery.failures, delivery.next_at) == (1, pytest.approx(watched.clock(), abs=1.1))


def test_a_storm_of_one_run_delays_the_alarm_of_another_by_one_delivery(watched):
    go_on = threading.Event()

    def late(handler):
        go_on.wait(30)
        says(200)(handler)

    with listening(late) as hook:
        watched.route(hook=hook.url)
        for _ in range(12):  # an incident each: the steps leap
            watched.train(sigma=3.0)
            watched.step += 1_000
        hook.wait_for(1)
        register(watched.api, TABLE, run="other")
        batch = batch_of(TABLE, sigma=[[3.0, 1.0]], threshold=[[2.0, 2.0]])
        assert watched.api.send(batch, run="other").status_code == 200
        until(lambda: watched.incidents(run="other"))
        before = len(hook.heard)
        go_on.set()
        heard = hook.wait_for(before + 1)
    assert [each.json()["run"] for each in heard[:before]] == ["r"] * before
    assert heard[before].json()["run"] == "other"


@pytest.fixture
def frugal(tmp_path, monkeypatch):
    """A service that sends two messages a minute about one run."""
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.05)
    settings = settings_in(tmp_path, alert_networks=LOOPBACK, alert_messages_per_minute=2)
    clock = Clock()
    with serving_app(settings, clock=clock) as api:
        yield Watched(api, clock)


def storm(watched, number):
    for seq in range(number):  # an incident each: values are lost, and the steps leap
        batch = batch_of(TABLE, seq, (1_000 * seq,), dropped=1, sigma=[[1.0, 1.0]])
        assert watched.api.send(batch).status_code == 200
    until(lambda: len(watched.incidents(run="r")) == number)


@pytest.mark.parametrize("status", [200, 500])
def test_a_storm_of_one_run_ends_in_a_digest_that_is_the_message_of_each(frugal, status):
    go_on = threading.Event()

    def late(handler):
        go_on.wait(30)
        says(status)(handler)

    with listening(late) as hook:
        frugal.route(hook=hook.url)
        storm(frugal, 9)
        go_on.set()
        if status == 500:
            until(lambda: frugal.deliveries()["failed"] >= 1)
            hook.answer = says(200)
            frugal.pass_time(2)
        heard = [each.json() for each in hook.wait_for(3)]
        until(lambda: frugal.health()["waiting"] == 0)
    assert [len(each["more_incidents"]) for each in heard[:2]] == [0, 0]
    *_, digest = heard
    assert len(digest["more_incidents"]) >= 6
    assert "more incidents of this run" in digest["title"]
    told = {each["incident"] for each in heard} | set(digest["more_incidents"])
    assert told == {each["incident"] for each in frugal.incidents(run="r")}
    assert frugal.deliveries()["delivered"] == (3 if status == 200 else 2)


def test_alertmanager_gets_every_incident_of_a_digest(frugal):
    go_on = threading.Event()

    def late(handler):
        go_on.wait(30)
        says(200)(handler)

    with listening(late) as hook:
        url = hook.url.removesuffix("/hooks/secret-path")
        frugal.route(am={"type": "alertmanager", "url": url})
        storm(frugal, 9)
        go_on.set()
        *_, digest = hook.wait_for(3)
    named = {alert["labels"]["incident"] for each in hook.heard for alert in each.json()}
    assert len(digest.json()) > 1
    assert named == {str(each["incident"]) for each in frugal.incidents(run="r")}
