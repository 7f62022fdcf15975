"""Incidents, their deliveries and silences: the types of the store for alerts.

Times are Unix seconds. Receivers and delivery times are defined in `snc_service.alerts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from snc_service.wire import Severity

# A notice is one routed event of severity info: it starts and ends at once.
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
    """Related faults of one run: ``entries`` in order, none for a while after the last is its end.

    ``revision`` grows by one with every change. ``omitted`` counts entries beyond the stored ones.
    """

    id: int  # 0: not stored yet
    run: str
    project: str
    state: IncidentState
    severity: Severity  # the highest so far
    entries: tuple[Entry, ...]
    opened_at: float
    updated_at: float
    revision: int = 1
    omitted: int = 0
    resolved_at: float | None = None
    acknowledged_at: float | None = None
    acknowledged_by: str = ""


class OpenIncident(NamedTuple):
    """An open incident as its index has it: whether it, or its run, has changed."""

    id: int
    revision: int
    run_id: int
    state: str  # of the run, as the next two
    updated_at: float
    version: int


@dataclass(frozen=True)
class RunFacts:
    """The facts that decide whether an incident goes on: the run's state, and when rules fired.

    ``pulse`` is what `RunDetection.pulse` said after the run's newest batch.
    """

    run: str
    project: str
    state: str
    updated_at: float
    last_step: int
    version: int
    pulse: bytes | None = field(repr=False)


@dataclass(frozen=True)
class IncidentChange:
    """An incident to store, and its receivers: new ones, and those notified before.

    ``wake``: whether receivers with a delivery of the incident must check it again now.
    """

    incident: Incident
    receivers: Sequence[str] = ()
    wake: bool = False


# (run, its open incident, new entries in order) -> changes. Pure: the store calls it inside the
# transaction that takes the entries out of the outbox.
Gather: TypeAlias = Callable[[RunFacts, Incident | None, Sequence[Entry]], Sequence[IncidentChange]]


@dataclass(frozen=True)
class AlertDelivery:
    """The last message of one incident to one receiver, and the time of the next check."""

    incident: int
    receiver: str
    next_at: float | None
    told: Told = "nothing"
    told_at: float | None = None
    told_severity: Severity = "info"
    failures: int = 0  # since the last successful message
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
    """Pending work: the version of the routing, events to gather, receivers with due deliveries."""

    version: int
    outbox: bool
    due: tuple[str, ...]


@dataclass(frozen=True)
class ReceiverHealth:
    """The state of one receiver: waiting deliveries, consecutive failures and the newest error."""

    receiver: str
    waiting: int
    failures: int
    error: str
    told_at: float | None


@dataclass(frozen=True)
class Silence:
    """Events that match all four globs notify no receiver until ``until``."""

    id: int  # 0: not stored yet
    project: str
    run: str
    rule: str
    layer: str
    until: float
    comment: str
    author: str
    at: float
