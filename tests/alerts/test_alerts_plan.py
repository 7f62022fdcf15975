"""Who is told when: once, again while it lasts, when it is worse, when over; never too often."""

from dataclasses import replace

import pytest
from alert_cases import NOW, entry, incident
from hypothesis import given
from hypothesis import strategies as st

from snc_service.alerts import Alerting
from snc_service.alerts.plan import Tell, Wait, after_failure, after_success, jitter, next_step
from snc_service.store.types.incidents import AlertDelivery, Silence

HOUR = 3_600
ROUTED = {
    "receivers": {
        "chat": {"type": "slack", "url": "https://hooks.example/x"},
        "am": {"type": "alertmanager", "url": "http://am.example:9093"},
        "curt": {"type": "slack", "url": "https://hooks.example/y"},
    },
    "routes": [
        {"receivers": ["chat", "am"], "repeat_seconds": HOUR, "severity": "info"},
        {"receivers": ["curt"], "repeat_seconds": None, "resolved": False},
    ],
}
ALERTING = Alerting.parse(ROUTED)
BREACH = incident(entry(10, "breach"))
OVER = replace(BREACH, state="resolved", resolved_at=NOW)
WORSE = replace(BREACH, severity="critical")
KNOWN = replace(BREACH, acknowledged_at=NOW, acknowledged_by="anna")


def new(receiver="chat", **changes):
    return replace(AlertDelivery(1, receiver, NOW), **changes)


def told(receiver="chat", at=NOW, **changes):
    return new(receiver, told="firing", told_at=at, told_severity="warning", **changes)


def step(delivery, incident=BREACH, *, now=NOW, silences=(), alerting=ALERTING):
    return next_step(delivery, incident, alerting, silences, now)


def silence(until=NOW + HOUR, project="*", run="*", rule="*", layer="*"):
    return Silence(1, project, run, rule, layer, until, "", "anna", NOW)


def test_a_new_incident_is_told_at_once():
    assert step(new()) == Tell("firing", HOUR)
    assert step(new("curt")) == Tell("firing", None)


def test_it_is_told_again_after_the_interval_and_not_before():
    assert step(told(), now=NOW + HOUR - 1) == Wait(NOW + HOUR)
    assert step(told(), now=NOW + HOUR) == Tell("firing", HOUR)
    assert step(told("curt"), now=NOW + 99 * HOUR) == Wait(None)


def test_what_became_worse_is_told_at_once():
    assert step(told(), WORSE, now=NOW + 1) == Tell("firing", HOUR)
    assert step(replace(told(), told_severity="critical"), WORSE, now=NOW + 1) == Wait(NOW + HOUR)


def test_that_it_is_over_is_told_to_those_who_knew_and_want_to_hear_it():
    assert step(told(), OVER) == Tell("resolved", None)
    assert step(replace(told(), told="resolved"), OVER) == Wait(None)
    assert step(told("curt"), OVER) == Wait(None)


def test_a_receiver_that_was_down_hears_that_it_was_and_then_that_it_is_over():
    first = step(new(), OVER)
    assert first == Tell("firing", 0.0)
    after = after_success(new(), OVER, first, NOW)
    assert after.next_at == NOW
    assert step(after, OVER) == Tell("resolved", None)


def test_what_somebody_looks_after_is_not_repeated():
    assert step(told(), KNOWN, now=NOW + 99 * HOUR) == Wait(None)
    assert step(new(), KNOWN) == Wait(None)
    assert step(told(), replace(KNOWN, state="resolved", resolved_at=NOW)) == Tell("resolved", None)


def test_alertmanager_is_refreshed_so_that_it_does_not_think_it_is_over():
    assert step(told("am"), now=NOW + 60) == Tell("firing", 60)
    assert step(told("am"), KNOWN, now=NOW + 60) == Tell("firing", 60)
    assert step(told("am"), OVER) == Tell("resolved", None)


def test_a_notice_is_told_once():
    notice = incident(entry(5, "policy_changed", "info"), state="notice")
    tell = step(new(), notice)
    assert tell == Tell("notice", None)
    assert step(after_success(new(), notice, tell, NOW), notice) == Wait(None)


def test_who_is_no_longer_routed_to_is_left_alone():
    assert step(new("ghost")) == Wait(None)
    unrouted = Alerting.parse({**ROUTED, "routes": []})
    assert step(new(), alerting=unrouted) == Wait(None)


@pytest.mark.parametrize(
    "covering",
    [silence(), silence(run="r"), silence(project="p", rule="br*"), silence(layer="fc1.*")],
)
def test_a_silence_that_covers_holds_until_it_ends(covering):
    assert step(new(), silences=[covering]) == Wait(NOW + HOUR, silenced=True)
    assert step(told(), now=NOW + HOUR / 2, silences=[covering]) == Wait(NOW + HOUR, silenced=True)


@pytest.mark.parametrize(
    "other", [silence(run="x*"), silence(project="q"), silence(rule="r"), silence(layer="fc2.*")]
)
def test_a_silence_of_something_else_holds_nothing(other):
    assert step(new(), silences=[other]) == Tell("firing", HOUR)


def test_an_incident_is_silent_only_while_all_of_its_events_are():
    two = incident(entry(10, "breach"), entry(12, "nonfinite", "critical"))
    assert step(new(), two, silences=[silence(rule="breach")]) == Tell("firing", HOUR)
    both = [silence(rule="breach", until=NOW + 9), silence(rule="nonfinite", until=NOW + 5)]
    assert step(new(), two, silences=both) == Wait(NOW + 5, silenced=True)
    longer = [silence(rule="breach", until=NOW + 9), silence(rule="b*", until=NOW + 20)]
    assert step(new(), silences=longer) == Wait(NOW + 20, silenced=True)


def test_what_came_and_went_in_silence_is_never_told():
    assert step(new(), OVER, silences=[silence()]) == Wait(None)
    assert step(told(), OVER, silences=[silence()]) == Wait(NOW + HOUR, silenced=True)


def test_waits_double_up_to_five_minutes_and_a_day_later_it_is_given_up():
    delivery, now, waits = new(), NOW, []
    while True:
        delivery = after_failure(delivery, "down", None, now, jitter=0.0)
        if delivery.next_at is None:
            break
        waits.append(delivery.next_at - now)
        now = delivery.next_at
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(waits[9:]) == {300}
    assert 86_400 <= now - NOW <= 86_700
    assert delivery.error == "down"
    assert delivery.told == "nothing"


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_jitter_shortens_a_wait_by_up_to_half(failures, chance):
    whole = after_failure(new(failures=failures), "", None, NOW, jitter=0.0).next_at - NOW
    some = after_failure(new(failures=failures), "", None, NOW, jitter=chance).next_at - NOW
    assert whole / 2 - 1e-6 <= some <= whole


def test_jitter_differs():
    assert len({jitter() for _ in range(10)}) == 10
    assert all(0 <= jitter() < 1 for _ in range(100))


def test_what_retry_after_asks_for_is_kept_up_to_an_hour():
    assert after_failure(new(), "", 90.0, NOW, jitter=0.9).next_at == NOW + 90
    assert after_failure(new(), "", 10**9, NOW, jitter=0.9).next_at == NOW + HOUR
    assert after_failure(new(), "", 0.0, NOW, jitter=0.0).next_at == NOW + 1


def test_success_forgets_the_failures():
    failing = new(failures=9, failing_since=NOW - 99, error="down", silenced=True)
    after = after_success(failing, WORSE, Tell("firing", HOUR), NOW)
    assert after == AlertDelivery(1, "chat", NOW + HOUR, "firing", NOW, "critical")
