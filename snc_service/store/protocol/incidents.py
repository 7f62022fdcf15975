"""Incidents, who was told of them, and who said what about them: the store's side of alerts.

Times are Unix seconds. What a receiver is, and when one is told, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

Severity: TypeAlias = Literal["info", "warning", "critical"]
# A notice is one event of severity info that somebody wants to hear of: it starts and ends at once.
IncidentState: TypeAlias = Literal["open", "resolved", "notice"]
Told: TypeAlias = Literal["nothing", "firing", "resolved"]


@dataclass(frozen=True)
class Entry:
    """An event as a part of an incident."""

    id: int
    at: float
    step: int
    rule: str
    severity: Severity
    message: str
    layer: str | None = None
    layers: int = 0
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Incident:
    """What went wrong together in one run: ``entries`` in order, so the first names it.

    ``revision`` grows by one with every change. ``omitted`` counts entries past the most kept.
    """

    id: int  # 0: not stored yet
    run: str
    project: str
    state: IncidentState
    severity: Severity  # the worst so far
    entries: tuple[Entry, ...]
    opened_at: float
    updated_at: float
    revision: int = 1
    omitted: int = 0
    resolved_at: float | None = None
    acknowledged_at: float | None = None
    acknowledged_by: str = ""

    @property
    def first(self) -> Entry:
        """Return the entry that came first: its rule and layer name the incident."""
        return self.entries[0]


@dataclass(frozen=True)
class RunFacts:
    """What decides whether an incident goes on: the run as it is, and detection's memory of it."""

    run: str
    project: str
    state: str
    updated_at: float
    last_step: int
    version: int
    rule_state: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Change:
    """An incident to store, and who is to be told of it: new receivers, and those told before.

    ``wake``: whether receivers who know of the incident must look at it again now.
    """

    incident: Incident
    receivers: Sequence[str] = ()
    wake: bool = False


# (run, its open incident, new entries in order) -> changes. Pure: the store calls it inside the
# transaction that takes the entries out of the outbox.
Gather: TypeAlias = Callable[[RunFacts, Incident | None, Sequence[Entry]], Sequence[Change]]


@dataclass(frozen=True)
class Delivery:
    """What one receiver was told of one incident, and when to see to it again (None: never)."""

    incident: int
    receiver: str
    next_at: float | None
    told: Told = "nothing"
    told_at: float | None = None
    told_severity: Severity = "info"
    failures: int = 0  # since it was last told
    failing_since: float | None = None
    error: str = ""
    silenced: bool = False


@dataclass(frozen=True)
class Work:
    """What there is to do: the version of the routing, events to gather, receivers to be told."""

    version: int
    outbox: bool
    due: tuple[str, ...]


@dataclass(frozen=True)
class Health:
    """How one receiver does: deliveries waiting, failures in a row, and the newest error."""

    receiver: str
    waiting: int
    failures: int
    error: str
    told_at: float | None


@dataclass(frozen=True)
class Silence:
    """Events that match all four globs tell nobody until ``until``."""

    id: int  # 0: not stored yet
    project: str
    run: str
    rule: str
    layer: str
    until: float
    comment: str
    author: str
    at: float


@dataclass(frozen=True)
class StoredAlerting:
    """The routing document and where it came from; version 0 is the empty one nobody set."""

    body: Mapping[str, Any] = field(repr=False)  # holds secrets
    version: int
    author: str
    at: float


class AlertStore(Protocol):
    """The part of the store that is about alerts."""

    # The routing document
    def alerting(self) -> StoredAlerting:
        """Return the document in force."""

    def put_alerting(
        self, body: Mapping[str, Any], *, author: str, now: float, if_version: int | None
    ) -> StoredAlerting:
        """Store a new version (audit ``alerting_changed``). Raises `AlertingConflict`."""

    def alerting_versions(self) -> list[StoredAlerting]:
        """Return every version, newest first."""

    # Incidents
    def alert_work(self, now: float) -> Work:
        """Return what there is to do, in one cheap read."""

    def gather_events(self, gather: Gather, *, now: float, limit: int) -> int:
        """Turn up to ``limit`` events out of the outbox into incidents, in one transaction.

        Every stored event passes here exactly once, in the order of its run. Returns how many.
        """

    def open_incidents(self) -> list[tuple[Incident, RunFacts]]:
        """Return open incidents with their runs, the oldest first."""

    def change_incidents(self, changes: Sequence[Change], *, now: float) -> int:
        """Store incidents that were read before, in one transaction; return how many.

        Those that changed since are left out. ``revision`` must be one above the one read, or the
        same to add receivers only.
        """

    def incident(self, id_: int) -> Incident | None:
        """Return one incident, None if there is no such one."""

    def incidents(
        self,
        *,
        run: str | None,
        project: str | None,
        state: IncidentState | None,
        limit: int,
        after: int | None,
    ) -> tuple[list[Incident], int | None]:
        """Return incidents, newest first, and the id to continue ``after``, None at the end."""

    def acknowledge(
        self, id_: int, *, author: str, now: float, comment: str = ""
    ) -> Incident | None:
        """Note that somebody looks after an incident (audit ``incident_acknowledged``), once."""

    # Deliveries
    def due_delivery(self, receiver: str, now: float) -> tuple[Delivery, Incident] | None:
        """Return the receiver's delivery that has been due for longest."""

    def claim_delivery(self, delivery: Delivery, *, now: float, until: float) -> bool:
        """Keep others off a delivery until it is saved, or until then; False: it is not as read."""

    def save_delivery(
        self, delivery: Delivery, *, revision: int, now: float, hold_until: float | None = None
    ) -> None:
        """Store what became of a claimed delivery.

        It is due at once if its incident is no longer at ``revision``. ``hold_until`` puts off
        everything else that is due to this receiver.
        """

    def receiver_health(self) -> list[Health]:
        """Return how each receiver does that was ever to be told something."""

    # Silences
    def silences(self, now: float) -> list[Silence]:
        """Return the silences that have not ended, newest first."""

    def add_silence(self, silence: Silence) -> Silence:
        """Store a silence (audit ``silence_added``) and return it with its id."""

    def wake_deliveries(self, now: float) -> None:
        """Let everything that waits for its time be looked at now, what silences hold excepted.

        For a clock that went back: times that were set by it lie too far ahead.
        """

    def delete_silence(self, id_: int, *, author: str, now: float) -> bool:
        """End a silence now (audit ``silence_deleted``); False if there is no such one."""
