"""When a receiver is notified, and with which message, from its earlier messages. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from snc_service.alerts.document import Alerting, rank
from snc_service.alerts.receivers import Alertmanager
from snc_service.store.types.incidents import AlertDelivery, Entry, Incident, Silence

# Alertmanager repeats and resolves alerts itself; it needs a refresh while an alert is open.
REFRESH_SECONDS: Final = 60.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 300.0
MOST_RETRY_AFTER_SECONDS: Final = 3_600.0
GIVE_UP_SECONDS: Final = 86_400.0
GIVE_UP_TRIES: Final = (
    20  # at least: a day of hourly waits has more; after a clock leap a delivery may have fewer
)

Message: TypeAlias = Literal["firing", "resolved", "notice"]


@dataclass(frozen=True)
class Tell:
    """Send a message now, and the next after ``repeat_seconds`` (None: no repetition)."""

    message: Message
    repeat_seconds: float | None


@dataclass(frozen=True)
class Wait:
    """Look again at ``until`` (None: only after a change)."""

    until: float | None
    silenced: bool = False


def next_step(
    delivery: AlertDelivery,
    incident: Incident,
    alerting: Alerting,
    silences: Sequence[Silence],
    now: float,
) -> Tell | Wait:
    """Return the next action for one receiver and one incident.

    A receiver gets a "resolved" message only after a "firing" message. It gets neither for an
    incident that was resolved under silences, or acknowledged before its first message.
    """
    receiver = alerting.receivers.get(delivery.receiver)
    terms = alerting.terms(delivery.receiver, incident)
    if receiver is None or terms is None:
        return Wait(None)
    until = silenced_until(incident, silences)
    if until is not None:
        gone = incident.state == "resolved" and delivery.told == "nothing"
        return Wait(None) if gone else Wait(until, silenced=True)
    refreshed = isinstance(receiver, Alertmanager)
    repeat = REFRESH_SECONDS if refreshed else terms.repeat_seconds
    if incident.state == "notice":
        return Tell("notice", None) if delivery.told == "nothing" else Wait(None)
    if incident.state == "resolved":
        return _ending(delivery, terms.resolved or refreshed)
    if delivery.told == "nothing" or rank(incident.severity) > rank(delivery.told_severity):
        return Wait(None) if _is_looked_after(delivery, incident) else Tell("firing", repeat)
    if repeat is None or (incident.acknowledged_at is not None and not refreshed):
        return Wait(None)
    again = (delivery.told_at or now) + repeat
    return Tell("firing", repeat) if again <= now else Wait(again)


def _ending(delivery: AlertDelivery, wanted: bool) -> Tell | Wait:
    if delivery.told == "nothing":
        return Tell("firing", 0.0)  # the "resolved" message follows at once
    return Tell("resolved", None) if wanted and delivery.told == "firing" else Wait(None)


def _is_looked_after(delivery: AlertDelivery, incident: Incident) -> bool:
    return delivery.told == "nothing" and incident.acknowledged_at is not None


def after_success(
    delivery: AlertDelivery, incident: Incident, tell: Tell, now: float
) -> AlertDelivery:
    """Return the delivery after a message was sent."""
    return replace(
        delivery,
        told="firing" if tell.message == "firing" else "resolved",
        told_at=now,
        told_severity=incident.severity,
        next_at=None if tell.repeat_seconds is None else now + tell.repeat_seconds,
        failures=0,
        failing_since=None,
        error="",
        silenced=False,
    )


def after_failure(
    delivery: AlertDelivery, error: str, retry_after: float | None, now: float, jitter: float
) -> AlertDelivery:
    """Return the delivery after a failed attempt; ``next_at`` None: given up.

    Waits double from 1 s to 5 min, shortened by up to half by ``jitter`` in [0, 1). They are never
    shorter than the Retry-After of the receiver, which counts up to an hour.
    """
    since = delivery.failing_since or now
    wait = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(delivery.failures, 30))
    wait *= 1 - jitter / 2
    if retry_after is not None:
        wait = max(wait, min(retry_after, MOST_RETRY_AFTER_SECONDS))
    given_up = now - since >= GIVE_UP_SECONDS and delivery.failures >= GIVE_UP_TRIES
    return replace(
        delivery,
        next_at=None if given_up else now + wait,
        failures=delivery.failures + 1,
        failing_since=since,
        error=error,
    )


def jitter() -> float:
    """Return a number in [0, 1) that spreads the retries of receivers that failed together."""
    return random.random()


def silenced_until(incident: Incident, silences: Sequence[Silence]) -> float | None:
    """Return when the first silence ends if every event of the incident is silenced, else None."""
    ends = [_silent_until(entry, incident, silences) for entry in incident.entries]
    return min((end for end in ends if end is not None), default=None) if all(ends) else None


def _silent_until(entry: Entry, incident: Incident, silences: Sequence[Silence]) -> float | None:
    return max((s.until for s in silences if _covers(s, entry, incident)), default=None)


def _covers(silence: Silence, entry: Entry, incident: Incident) -> bool:
    return (
        fnmatchcase(incident.project, silence.project)
        and fnmatchcase(incident.run, silence.run)
        and fnmatchcase(entry.rule, silence.rule)
        and fnmatchcase(entry.layer or "", silence.layer)
    )
