"""The types that other rooms see of the store: records and errors.

All methods are synchronous and safe to call from any thread. Each write is one durable transaction.
Times are Unix seconds (float64). Layers go by name; their indexes stay internal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

from snc_service.store.types import imported
from snc_service.store.types.annotations import Annotation
from snc_service.store.types.bounds import Bounds as Bounds
from snc_service.store.types.bounds import RunBounds as RunBounds
from snc_service.store.types.bounds import StoreBounds as StoreBounds
from snc_service.store.types.documents import VersionedDocument as VersionedDocument
from snc_service.store.types.errors import BoundReached as BoundReached
from snc_service.store.types.errors import CommandsWaiting as CommandsWaiting
from snc_service.store.types.errors import HistoryThinned as HistoryThinned
from snc_service.store.types.errors import LayerTableMismatch as LayerTableMismatch
from snc_service.store.types.errors import LayerTableUnknown as LayerTableUnknown
from snc_service.store.types.errors import LayerUnknown as LayerUnknown
from snc_service.store.types.errors import QuotaExceeded as QuotaExceeded
from snc_service.store.types.errors import RunClosed as RunClosed
from snc_service.store.types.errors import RunFull as RunFull
from snc_service.store.types.errors import RunUnknown as RunUnknown
from snc_service.store.types.errors import SequenceConflict as SequenceConflict
from snc_service.store.types.errors import SequenceGap as SequenceGap
from snc_service.store.types.errors import ServiceFull as ServiceFull
from snc_service.store.types.errors import StoreDamaged as StoreDamaged
from snc_service.store.types.errors import StoreError as StoreError
from snc_service.store.types.errors import StoreFull as StoreFull
from snc_service.store.types.errors import StoreUnavailable as StoreUnavailable
from snc_service.store.types.errors import TokenExists as TokenExists
from snc_service.store.types.errors import TokenUnknown as TokenUnknown
from snc_service.store.types.errors import VersionConflict as VersionConflict
from snc_service.store.types.histories import Buckets as Buckets
from snc_service.store.types.histories import Extent as Extent
from snc_service.store.types.histories import LatestValues as LatestValues
from snc_service.store.types.histories import Piece as Piece
from snc_service.store.types.histories import Steps as Steps
from snc_service.store.types.histories import Window as Window
from snc_service.store.types.histories import Worst as Worst
from snc_service.store.types.records import StoredCommand
from snc_service.store.types.shares import EVERYTHING as EVERYTHING
from snc_service.store.types.shares import RunShare as RunShare
from snc_service.wire import Batch, RuleSettings, Severity
from snc_service.wire.batch import Floats as Floats

RunState: TypeAlias = Literal["active", "silent", "finished", "failed"]
EndState: TypeAlias = Literal["finished", "failed"]
BadEnd: TypeAlias = Literal["nonfinite", "breach"]
END_STATES: Final[tuple[EndState, ...]] = get_args(EndState)


@dataclass(frozen=True)
class Run:
    """One training job in lists. Counters run from its start, over all attempts."""

    run: str
    name: str
    project: str
    state: RunState
    created_at: float
    updated_at: float  # of the last batch, or of the last change of state
    last_step: int | None
    layers: int
    breaches: int  # layer-steps with sigma > threshold
    rescales: int  # layer-steps with scale < 1
    guard_vetoes: int
    dropped_values: int
    worst_ratio: float | None  # newest sigma / threshold, the largest finite value over layers
    worst_layer: str | None
    nonfinite_layers: int  # layers whose newest sigma is not finite
    attempt: int
    version: int  # grows with every change of the run; used in ETags
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    overhead: float | None = None  # newest callback_seconds / step_seconds, where both are reported
    loss: float | None = None  # the newest one; None: not finite, or never reported
    nonfinite_loss: bool = False  # the newest loss is not finite
    archived: bool = False
    note: str = ""
    acknowledged_at: float | None = None  # when somebody took note of how the run ended
    acknowledged_by: str = ""
    ended_in: BadEnd | None = None  # of a run that is not active: what its last values say
    incidents: int = 0  # open ones
    incident_severity: Severity | None = None  # of the most severe open incident

    @property
    def started_at(self) -> float:
        """Return when the run began, Unix seconds; of an imported run what its source says."""
        return imported.started_at(self.config, self.created_at)

    @property
    def duration(self) -> float | None:
        """Return the seconds to the last report; of an imported run its source's, if it says so."""
        return imported.seconds(self.config, self.updated_at - self.created_at)


@dataclass(frozen=True)
class Repaired:
    """Damage, and what was done about it."""

    damage: StoreDamaged
    done: str


@dataclass(frozen=True)
class Verified:
    """What a verification has looked at and found. ``unchecked`` rows of earlier releases have no
    checksum; ``engine`` are problems that the database itself reports.
    """

    tiles: int
    batches: int
    unchecked: int
    damaged: tuple[StoreDamaged, ...]
    engine: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """Something that happened once; ``layer`` is the worst of ``layers`` (a count)."""

    step: int
    rule: str
    severity: Severity
    message: str
    layer: str | None = None
    layers: int = 0
    value: float | None = None
    limit: float | None = None
    rules_version: int | None = None  # version of the settings of the rule; None: no rule


@dataclass(frozen=True)
class StoredEvent:
    """An event with run, id and time; ids grow by one per run."""

    run: str
    id: int
    at: float
    event: Event


_SHIPPED: Final = RuleSettings()


@dataclass(frozen=True)
class RunRows:
    """New rows of one run for detection: one batch with layer names, in its attempt."""

    run: str
    batch: Batch
    layers: tuple[str, ...]
    attempt: int
    new_attempt: bool  # the first batch of this attempt
    settings: RuleSettings = _SHIPPED  # in force for the run
    annotations: tuple[Annotation, ...] = ()  # of the run, the oldest first


class RunDetection(Protocol):
    """The rules at work on one run. What they remember follows from the rows alone.

    The store calls `advance` inside the transaction of a batch. It keeps the object from batch to
    batch, stores its bytes now and then, and lets another one replay the rows behind them.
    """

    def advance(self, rows: RunRows) -> list[Event]:
        """Return the events of the run's next rows."""

    def dump(self) -> bytes:
        """Return the state as bytes: an object made of them goes on as this one would."""

    def pulse(self) -> bytes:
        """Return what alerts need of the state, in a few bytes: stored with every batch."""

    @property
    def num_bytes(self) -> int:
        """Return the size in memory."""


# state, None for a new run -> the rules at work on it
Detection: TypeAlias = Callable[[bytes | None], RunDetection]
# the next rows of several runs -> what `RunDetection.advance` returns for each, or its error
Together: TypeAlias = Callable[[Sequence[tuple[Any, RunRows]]], Sequence[list[Event] | Exception]]


def one_by_one(
    items: Sequence[tuple[RunDetection, RunRows]],
) -> Sequence[list[Event] | Exception]:
    """Return the events of the next rows of several runs, judged one after the other."""
    found: list[list[Event] | Exception] = []
    for rules, rows in items:
        try:
            found.append(rules.advance(rows))
        except Exception as error:  # the others must not fail with it
            found.append(error)
    return found


@dataclass(frozen=True)
class Submission:
    """A received batch of a run; ``crc`` is the CRC-32 of the bytes that identify it.

    ``commands_seen`` is the newest command id that the sender has received, 0 for none.
    """

    run: str
    batch: Batch
    crc: int
    received_at: float
    commands_seen: int = 0


@dataclass(frozen=True)
class Outcome:
    """The result of a submission: stored, stored before, or refused with a `StoreError`.

    ``commands`` are those waiting for the job, oldest first.
    """

    duplicate: bool = False
    events: tuple[StoredEvent, ...] = ()
    policy_version: int = 0
    error: StoreError | None = None
    commands: tuple[StoredCommand, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page of a list; ``next`` is the key to continue after, None at the end."""

    items: Sequence[Any]
    next: tuple[Any, ...] | None


@dataclass(frozen=True)
class EventQuery:
    """Filters of an event list; None means any. Newest first; ``after`` is the last page's key."""

    run: str | None = None
    rule: str | None = None
    severity: Severity | None = None
    layer: str | None = None
    from_step: int | None = None
    limit: int = 100
    after: tuple[Any, ...] | None = None
    project: str | None = None
