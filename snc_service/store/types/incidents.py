"""Incidents, who was told of them, and who said what about them: the store's side of alerts.

Times are Unix seconds. What a receiver is, and when one is told, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from snc_service.wire import Severity

# A notice is one event of severity info that somebody wants to hear of: it starts and ends at once.
IncidentState: TypeAlias = Literal["open", "resolved", "notice"]
# What becomes of one attempt to deliver a message.
DELIVERY_OUTCOMES: Final = ("delivered", "failed", "refused", "abandoned")
IncidentOrder: TypeAlias = Literal["newest", "severity"]
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
class IncidentChange:
    """An incident to store, and who is to be told of it: new receivers, and those told before.

    ``wake``: whether receivers who know of the incident must look at it again now.
    """

    incident: Incident
    receivers: Sequence[str] = ()
    wake: bool = False


# (run, its open incident, new entries in order) -> changes. Pure: the store calls it inside the
# transaction that takes the entries out of the outbox.
Gather: TypeAlias = Callable[[RunFacts, Incident | None, Sequence[Entry]], Sequence[IncidentChange]]


@dataclass(frozen=True)
class AlertDelivery:
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
class DueRun:
    """What is due to one receiver of one run: its most severe incident, and since when."""

    run: str
    project: str
    severity: Severity
    since: float


@dataclass(frozen=True)
class Work:
    """What there is to do: the version of the routing, events to gather, receivers to be told."""

    version: int
    outbox: bool
    due: tuple[str, ...]


@dataclass(frozen=True)
class ReceiverHealth:
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
