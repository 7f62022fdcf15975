"""What everybody else sees of the store: its nouns, its errors and the `Store` protocol.

All methods are synchronous and safe to call from any thread; each write is one durable
transaction. Times are Unix seconds (float64). Layers are named; their indexes stay inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from snc_service.store.protocol.errors import AlertingConflict as AlertingConflict
from snc_service.store.protocol.errors import CommandsWaiting as CommandsWaiting
from snc_service.store.protocol.errors import HistoryThinned as HistoryThinned
from snc_service.store.protocol.errors import LayerTableMismatch as LayerTableMismatch
from snc_service.store.protocol.errors import LayerTableUnknown as LayerTableUnknown
from snc_service.store.protocol.errors import LayerUnknown as LayerUnknown
from snc_service.store.protocol.errors import PolicyConflict as PolicyConflict
from snc_service.store.protocol.errors import QuotaExceeded as QuotaExceeded
from snc_service.store.protocol.errors import RulesConflict as RulesConflict
from snc_service.store.protocol.errors import RunClosed as RunClosed
from snc_service.store.protocol.errors import RunUnknown as RunUnknown
from snc_service.store.protocol.errors import SequenceConflict as SequenceConflict
from snc_service.store.protocol.errors import SequenceGap as SequenceGap
from snc_service.store.protocol.errors import StoreError as StoreError
from snc_service.store.protocol.errors import StoreFull as StoreFull
from snc_service.store.protocol.errors import StoreUnavailable as StoreUnavailable
from snc_service.store.protocol.errors import TokenExists as TokenExists
from snc_service.store.protocol.errors import TokenUnknown as TokenUnknown
from snc_service.store.protocol.errors import TooManyAnnotations as TooManyAnnotations
from snc_service.store.protocol.histories import Buckets as Buckets
from snc_service.store.protocol.histories import Extent as Extent
from snc_service.store.protocol.histories import Floats as Floats
from snc_service.store.protocol.histories import Histories
from snc_service.store.protocol.histories import Latest as Latest
from snc_service.store.protocol.histories import Piece as Piece
from snc_service.store.protocol.histories import Steps as Steps
from snc_service.store.protocol.histories import Window as Window
from snc_service.store.protocol.histories import Worst as Worst
from snc_service.store.protocol.incidents import AlertStore
from snc_service.store.protocol.incidents import Severity as Severity
from snc_service.store.protocol.records import Records, StoredCommand
from snc_service.store.protocol.rule_settings import Annotation, RuleStore
from snc_service.wire import Batch, LayerTable, Policy, RuleSettings

RunState: TypeAlias = Literal["active", "silent", "finished", "failed"]


@dataclass(frozen=True)
class Run:
    """One training job as lists show it. Counters are since its start, over all attempts."""

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
    worst_ratio: float | None  # newest sigma / threshold, largest over layers; finite values only
    worst_layer: str | None
    nonfinite_layers: int  # layers whose newest sigma is not finite
    attempt: int
    version: int  # grows with every change of the run: tags caches
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    overhead: float | None = None  # newest callback_seconds / step_seconds, where both are reported


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
    rules_version: int | None = None  # of the settings that a rule obeyed; None: no rule


@dataclass(frozen=True)
class StoredEvent:
    """An event with its place: ids grow by one per run."""

    run: str
    id: int
    at: float
    event: Event


@dataclass(frozen=True)
class StoredPolicy:
    """A policy and where it came from; version 0 is the empty one that nobody set."""

    policy: Policy
    version: int
    scope: Literal["run", "project", "none"]
    author: str
    at: float


@dataclass(frozen=True)
class Rows:
    """New rows of one run as detection sees them: one batch, its layers named, in its attempt."""

    run: str
    batch: Batch
    layers: tuple[str, ...]
    attempt: int
    new_attempt: bool  # the first batch of this attempt
    settings: RuleSettings = field(default_factory=RuleSettings)  # in force for the run
    annotations: tuple[Annotation, ...] = ()  # of the run, the oldest first


# (state or None, rows) -> (new state, events). Pure: the store calls it inside the transaction of
# the batch and keeps the state there, so that a crash neither repeats nor misses an event.
Advance: TypeAlias = Callable[[bytes | None, Rows], tuple[bytes, list[Event]]]


@dataclass(frozen=True)
class Submission:
    """A batch on its way into a run; ``crc`` is the CRC-32 of the bytes that identify it.

    ``commands_seen`` is the newest command that the sender says it has, 0 for none.
    """

    run: str
    batch: Batch
    crc: int
    received_at: float
    commands_seen: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a submission: stored, stored before, or refused with one of our errors.

    ``commands`` wait for the job, oldest first.
    """

    duplicate: bool = False
    events: tuple[StoredEvent, ...] = ()
    policy_version: int = 0
    error: StoreError | None = None
    commands: tuple[StoredCommand, ...] = ()


@dataclass(frozen=True)
class Page:
    """A slice of a list; ``next`` is the key to continue after, None at the end."""

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


class Store(Histories, Records, AlertStore, RuleStore, Protocol):
    """One service's whole memory."""

    # Runs
    def create_run(
        self,
        run: str,
        *,
        name: str,
        project: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        policy: Policy | None,
        now: float,
        author: str = "client",
        quota: int | None = None,
    ) -> tuple[Run, bool]:
        """Create a run (event ``run_started``), or return the one that exists; True if new.

        An existing run that was finished, failed or silent becomes active again. ``policy`` becomes
        version 1 of the run's own policy if neither the run nor its project has one. Raises
        `QuotaExceeded` if ``author`` has created ``quota`` runs that still exist.
        """

    def run(self, run: str) -> Run:
        """Return one run. Raises `RunUnknown`."""

    def runs(
        self,
        *,
        project: str | None,
        state: RunState | None,
        limit: int,
        after: tuple[Any, ...] | None,
    ) -> Page:
        """Return runs, newest first."""

    def finish_run(self, run: str, state: Literal["finished", "failed"], now: float) -> Run:
        """Close a run (event ``run_finished``). Closing a closed run changes nothing."""

    def mark_silent(self, before: float, now: float) -> list[StoredEvent]:
        """Turn active runs last heard of before ``before`` silent (event ``run_silent``, once)."""

    def delete_run(self, run: str, *, author: str = "", now: float | None = None) -> None:
        """Delete everything of a run (audit ``run_deleted``). Raises `RunUnknown`."""

    def prune(self, before: float) -> list[str]:
        """Delete every run that is not active and was last heard of before ``before``.

        Returns their ids. Keeps no more than one slice of rows locked at a time.
        """

    def shrink(self, most_bytes: int) -> list[str]:
        """Delete runs that are not active, oldest first, until history has so many bytes at most.

        Returns their ids. Active runs may leave it larger. Looks at the length of every tile.
        """

    def thin(self, before: float, now: float) -> list[str]:
        """Drop exact values of runs not active and last heard of before ``before``; keep rollups.

        Their history has min, max and mean of every 32 measured steps from then on. Returns the ids
        of runs that lost something (audit ``run_thinned``).
        """

    # Ingest
    def put_layer_table(self, run: str, table: LayerTable) -> None:
        """Register a table; the same one again changes nothing. Raises `RunUnknown`."""

    def layer_table(self, run: str, table_hash: str) -> LayerTable | None:
        """Return a registered table."""

    def ingest(self, items: Sequence[Submission], advance: Advance) -> list[Outcome]:
        """Store submissions in one durable transaction; one bad item does not fail the others.

        Idempotent on (run, writer, seq). Events of detection, of rewound steps (``rewound``) and of
        ``dropped`` values are stored with the batch, and so is detection's state.
        """

    # Events
    def events(self, query: EventQuery) -> Page:
        """Return `StoredEvent`s."""

    def event_counts(self) -> Mapping[tuple[str, str, Severity], int]:
        """Return how many events each (run, rule, severity) has."""

    # Policy
    def policy(self, run: str) -> StoredPolicy:
        """Return the policy in force: the run's own, else its project's, else version 0."""

    def put_policy(
        self, run: str, policy: Policy, *, author: str, now: float, if_version: int | None
    ) -> StoredPolicy:
        """Store a new version of a run's own policy (event ``policy_changed``).

        Its version is one above the version in force. Raises `RunUnknown`, `PolicyConflict`.
        """

    def policy_versions(self, run: str) -> list[StoredPolicy]:
        """Return every version of the run's own policy, newest first."""

    def project_policy(self, project: str) -> StoredPolicy:
        """Return a project's policy (version 0 if none)."""

    def put_project_policy(
        self, project: str, policy: Policy, *, author: str, now: float, if_version: int | None
    ) -> StoredPolicy:
        """Store a new version of a project's policy. Raises `PolicyConflict`."""

    def project_policy_versions(self, project: str) -> list[StoredPolicy]:
        """Return every version of a project's policy, newest first."""

    # Itself
    def fold(self, budget_s: float, *, now: float) -> int:
        """Compress history that has come in, for about ``budget_s`` seconds; return the values.

        No answer changes by it, ingest goes on meanwhile, and a crash loses nothing. 0: nothing is
        due. Call it every second or so from one background thread.
        """

    def ping(self) -> None:
        """Touch the database. Raises `StoreUnavailable`."""

    def size_bytes(self) -> int:
        """Return the bytes at rest."""

    def close(self) -> None:
        """Release everything; what was acknowledged stays."""
