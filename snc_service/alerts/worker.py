"""`Alerts`: the threads that group events into incidents and notify receivers.

One thread looks for work and makes no connection. Each receiver has its own thread, so a receiver
that hangs delays no other receiver and no ingest. A message is recorded after it was sent: a crash
in between may repeat a message but never loses one.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from snc_service.alerts import incidents, plan
from snc_service.alerts.address import Network
from snc_service.alerts.channels import tell
from snc_service.alerts.document import Alerting, rank
from snc_service.alerts.message import Message, test_message
from snc_service.alerts.post import DEADLINE_SECONDS, NotDelivered
from snc_service.alerts.turns import Turns
from snc_service.store import Store
from snc_service.store.types import EVERYTHING, StoreError
from snc_service.store.types.incidents import (
    AlertDelivery,
    Incident,
    IncidentChange,
    OpenIncident,
)

# Between two looks for work; it doubles while there is none. Events of this process end it at once.
PAUSE_SECONDS, IDLE_PAUSE_SECONDS = 0.2, 2.0
SWEEP_SECONDS: Final = 2.0  # between two checks for resolved incidents; longer if one takes long
SWEEP_PART: Final = 20  # of the time are they at most
LOOKED_SECONDS: Final = 300.0  # after which an incident is looked at although nothing changed
TROUBLE_SECONDS: Final = 5.0  # pause after the store could not be read or written
LEASE_SECONDS: Final = DEADLINE_SECONDS + 5.0  # after this a claimed delivery is free again
LEAP_SECONDS: Final = 60.0  # a clock that goes back by more makes waits too long
CLOSING_SECONDS: Final = 3.0  # for deliveries under way at `close`
HELD_SECONDS: Final = 1.0  # between two looks while all runs that wait are held
DIGEST_INCIDENTS: Final = 200  # in one digest; what is left waits for the next
EVENTS_AT_ONCE: Final = 200  # per transaction, so that ingest never waits longer for one
CHANGES_AT_ONCE: Final = 100

log = logging.getLogger(__name__)


class Alerts:
    """Alerts of one service: `start` it, `close` it before its store.

    ``allowed`` are networks that receivers may be in although they are not public;
    ``most_a_minute`` messages of one run to one receiver are followed by digests; ``observe`` hears
    one of `DELIVERY_OUTCOMES` per attempt; ``clock`` is Unix time. Several services on one store
    share the work.
    """

    def __init__(
        self,
        store: Store,
        *,
        allowed: Sequence[Network] = (),
        most_a_minute: int = 20,
        observe: Callable[[str], None] = lambda outcome: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._allowed = allowed
        self._most_a_minute = most_a_minute
        self._observe = observe
        self._clock = clock
        self._document = (0, Alerting({}))
        self._routed = 0  # the routing version last applied to open incidents
        self._next_sweep = 0.0
        self._looked: dict[int, tuple[tuple[int, int], float]] = {}  # by incident: see `_is_ripe`
        self._looked_at = float("-inf")
        self._closing = threading.Event()
        self._lanes: dict[str, threading.Thread] = {}
        self._turns: dict[str, Turns] = {}
        self._thread = threading.Thread(target=self._run, name="snc-alerts", daemon=True)

    def start(self) -> None:
        """Start the thread that looks for work."""
        self._thread.start()

    def close(self) -> None:
        """Stop; the next start repeats a delivery that hangs."""
        self._closing.set()
        self._store.incidents.wake()
        if self._thread.ident is not None:
            self._thread.join()
        deadline = time.monotonic() + CLOSING_SECONDS
        for lane in list(self._lanes.values()):
            lane.join(max(0.0, deadline - time.monotonic()))

    def test(self, receiver: str) -> None:
        """Send a test message now. Raises `KeyError` (no such receiver), `NotDelivered`."""
        alerting = self._alerting()
        target = alerting.receivers[receiver]
        try:
            tell(target, test_message(alerting.service_url, self._clock()), self._allowed)
        except NotDelivered as error:
            self._observe(error.outcome)
            raise
        self._observe("delivered")

    def _run(self) -> None:
        pause = PAUSE_SECONDS
        while True:
            self._store.incidents.wait(pause)
            if self._closing.is_set():
                return
            pause = min(2 * pause, IDLE_PAUSE_SECONDS)
            try:
                if self._look():
                    pause = PAUSE_SECONDS
            except StoreError as error:
                log.warning("alerts wait for the store: %s", error)
                pause = TROUBLE_SECONDS
            except Exception:  # a thread's top: one defect must not end all alerts
                log.exception("alerts could not be seen to")
                pause = TROUBLE_SECONDS

    def _look(self) -> bool:
        """See to what is pending; return whether anything was."""
        now = self._clock()
        if now < self._looked_at - LEAP_SECONDS:
            log.warning("the clock went back: what is to be told is looked at anew")
            self._store.deliveries.wake(now)
        self._looked_at = now
        work = self._store.incidents.work(now)
        alerting = self._alerting(work.version)
        if work.outbox:
            self._gather(alerting)
        if time.monotonic() >= self._next_sweep or work.version != self._routed:
            began = time.monotonic()
            self._sweep(alerting, everything=work.version != self._routed)
            self._routed = work.version
            ended = time.monotonic()
            self._next_sweep = ended + max(SWEEP_SECONDS, SWEEP_PART * (ended - began))
        is_busy = work.outbox
        if work.outbox:  # deliver gathered events at once
            work = self._store.incidents.work(now)
        for receiver in work.due:
            self._open_lane(receiver)
        return is_busy or bool(work.due)

    def _alerting(self, version: int | None = None) -> Alerting:
        if version is None or version != self._document[0]:
            stored = self._store.alert_routing.current()
            self._document = (stored.version, Alerting.parse(stored.content))
        return self._document[1]

    def _gather(self, alerting: Alerting) -> None:
        taken = EVENTS_AT_ONCE
        while taken == EVENTS_AT_ONCE and not self._closing.is_set():
            now = self._clock()
            decide = functools.partial(incidents.gather, told=alerting.told, now=now)
            taken = self._store.incidents.gather(decide, now=now, limit=EVENTS_AT_ONCE)

    def _sweep(self, alerting: Alerting, *, everything: bool) -> None:
        """Resolve incidents that are over; after a routing change, route open incidents again."""
        now = self._clock()
        changes = []
        marks = self._store.incidents.marks()
        share = EVERYTHING if everything else self._store.replicas.share()
        ripe = [
            each for each in marks
            if share.has(each.run_id) and (everything or self._is_ripe(each, now))
        ]  # fmt: skip
        for incident, facts in self._store.incidents.open(ripe) if ripe else ():
            over = incidents.is_over(incident, facts, now)
            if over:
                incident = incidents.resolved(incident, now)
            if over or everything:
                changes.append(IncidentChange(incident, alerting.told(incident), wake=True))
        for start in range(0, len(changes), CHANGES_AT_ONCE):
            self._store.incidents.change(changes[start : start + CHANGES_AT_ONCE], now=now)
        known = {each.id for each in marks}
        self._looked = {id_: look for id_, look in self._looked.items() if id_ in known}
        self._looked |= {each.id: ((each.revision, each.version), now) for each in ripe}

    def _is_ripe(self, mark: OpenIncident, now: float) -> bool:
        """Return whether an open incident may be over: something changed, or time has passed."""
        if mark.state != "active":
            return incidents.is_abandoned(mark.state, mark.updated_at, now)
        before, at = self._looked.get(mark.id, (None, now))
        changed = before != (mark.revision, mark.version)
        return changed or not 0 <= now - at < LOOKED_SECONDS

    def _open_lane(self, receiver: str) -> None:
        lane = self._lanes.get(receiver)
        if lane is None or not lane.is_alive():
            lane = threading.Thread(
                target=self._tell_all, args=(receiver,), name="snc-alert-lane", daemon=True
            )
            self._lanes[receiver] = lane
            lane.start()

    def _tell_all(self, receiver: str) -> None:
        """Tell one receiver what is due, one message after the other; runs take turns."""
        turns = self._turns.setdefault(receiver, Turns(self._most_a_minute))
        try:
            while not self._closing.is_set():
                now = self._clock()
                waiting = self._store.deliveries.waiting(receiver, now)
                if not waiting:
                    return
                each = turns.next(waiting, time.monotonic())
                if each is None:  # all runs that wait are held
                    self._closing.wait(HELD_SECONDS)
                    continue
                is_digest = turns.told(each, time.monotonic())
                most = DIGEST_INCIDENTS if is_digest else 1
                found = self._store.deliveries.due(receiver, each.run, now, limit=most)
                until = now + LEASE_SECONDS
                ours = self._store.deliveries.claim([d for d, _ in found], now=now, until=until)
                self._see_to([pair for pair, is_ours in zip(found, ours, strict=True) if is_ours])
        except StoreError as error:
            log.warning("alerts to %s wait for the store: %s", receiver, error)
            self._closing.wait(TROUBLE_SECONDS)
        except Exception:  # a thread's top
            log.exception("alerts to %s could not be seen to", receiver)
            self._closing.wait(TROUBLE_SECONDS)

    def _see_to(self, claimed: Sequence[tuple[AlertDelivery, Incident]]) -> None:
        """See to deliveries of one run; what is to be told of them is one message."""
        now = self._clock()
        alerting = self._alerting(self._store.incidents.work(now).version)
        silences = self._store.silences.active(now)
        waits, tells = [], []
        for delivery, incident in claimed:
            step = plan.next_step(delivery, incident, alerting, silences, now)
            if isinstance(step, plan.Wait):
                after = replace(delivery, next_at=step.until, silenced=step.silenced)
                waits.append((after, incident.revision))
            else:
                tells.append((delivery, incident, step))
        if waits:
            self._store.deliveries.save(waits, now=now)
        if tells:
            self._try(alerting, tells)

    def _try(
        self, alerting: Alerting, tells: Sequence[tuple[AlertDelivery, Incident, plan.Tell]]
    ) -> None:
        """Send one message; whatever is raised is a failure of this one, and counted."""
        delivery, incident, step = min(tells, key=_in_a_digest)
        others = tuple(each for _, each, _ in tells if each is not incident)
        message = Message(step.message, incident, alerting.service_url, others)
        try:
            tell(alerting.receivers[delivery.receiver], message, self._allowed)
        except NotDelivered as error:
            self._failed(tells, error)
            return
        except Exception as error:  # the others must not wait behind it
            log.exception("an alert to %s could not be made", delivery.receiver)
            words = f"the message could not be made: {type(error).__name__}"
            self._failed(tells, NotDelivered(words, outage=False))
            return
        now = self._clock()
        after = [(plan.after_success(d, i, step, now), i.revision) for d, i, step in tells]
        self._store.deliveries.save(after, now=now)
        self._observe("delivered")
        if delivery.failures:
            log.info("alerts to %s arrive again", delivery.receiver)

    def _failed(
        self, tells: Sequence[tuple[AlertDelivery, Incident, plan.Tell]], error: NotDelivered
    ) -> None:
        now, jitter = self._clock(), plan.jitter()
        after = [
            (plan.after_failure(d, str(error), error.retry_after, now, jitter), i.revision)
            for d, i, _ in tells
        ]
        (first, _, _), (failed, _) = tells[0], after[0]
        given_up = failed.next_at is None
        if first.failures == 0 or given_up:
            then = "it is given up" if given_up else "it will be tried again"
            log.warning("%s did not take an alert, %s: %s", first.receiver, then, error)
        hold = failed.next_at if error.outage else None
        self._store.deliveries.save(after, now=now, hold_until=hold)
        self._observe("abandoned" if given_up else error.outcome)


def _in_a_digest(told: tuple[AlertDelivery, Incident, plan.Tell]) -> tuple[bool, int, int]:
    """Return the place of an incident in a digest: it speaks of the most severe that lasts."""
    _, incident, step = told
    return step.message == "resolved", -rank(incident.severity), -incident.id
