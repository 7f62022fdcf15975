"""What everybody else sees of the store: its nouns, its errors and the `Store` protocol.

All methods are synchronous and safe to call from any thread; each write is one durable
transaction. Times are Unix seconds (float64). Layers are named; their indexes stay inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.store.incidents import AlertStore
from snc_service.store.incidents import Severity as Severity
from snc_service.store.records import Records, StoredCommand
from snc_service.wire import Batch, LayerSpec, LayerTable, Policy, RuleSettings

RunState: TypeAlias = Literal["active", "silent", "finished", "failed"]
Floats: TypeAlias = npt.NDArray[np.float32]
Steps: TypeAlias = npt.NDArray[np.int64]


class StoreError(Exception):
    """Base of everything a store raises on purpose."""


class RunUnknown(StoreError):
    """No such run (or it was deleted)."""


class LayerUnknown(StoreError):
    """The run has no layer of that name."""


class LayerTableUnknown(StoreError):
    """A batch names a layer table that the run has not registered."""


class LayerTableMismatch(StoreError):
    """A batch's number of layers differs from its table's."""


class SequenceGap(StoreError):
    """A batch's seq is above the next one; ``expected`` says which the store waits for."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(f"seq must be {expected}, got {got}")
        self.expected = expected
        self.got = got


class SequenceConflict(StoreError):
    """A seq that is stored came again with other content."""


class PolicyConflict(StoreError):
    """The policy changed since the version the caller has seen."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the policy in force is version {current}")
        self.current = current


class TokenUnknown(StoreError):
    """No such token."""


class TokenExists(StoreError):
    """The name is, or was, that of another token."""


class QuotaExceeded(StoreError):
    """The author has created as many runs as one may."""


class RunClosed(StoreError):
    """The run has ended."""


class CommandsWaiting(StoreError):
    """The run's job has not taken the commands that wait for it already."""


class AlertingConflict(StoreError):
    """The routing of alerts changed since the version the caller has seen."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the routing of alerts in force is version {current}")
        self.current = current


class StoreUnavailable(StoreError):
    """The database cannot be reached or written (disk full, read-only, locked, gone)."""


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


@dataclass(frozen=True)
class StoredEvent:
    """An event with its place: ids grow by one per run."""

    run: str
    id: int
    at: float
    event: Event


@dataclass(frozen=True)
class Latest:
    """The newest value of every (layer, metric): ``values`` [M, L], ABSENT where there is none."""

    layers: tuple[LayerSpec, ...]  # model order
    steps: Steps  # [L], the step of each layer's newest values; -1: none yet
    metrics: tuple[str, ...]
    values: Floats

    def metric(self, name: str) -> Floats | None:
        """Return the [L] newest values of one metric, None if no layer ever reported it."""
        return self.values[self.metrics.index(name)] if name in self.metrics else None


@dataclass(frozen=True)
class Window:
    """Which part of history, and how finely: ``from_step <= step <= to_step`` in ``points``."""

    from_step: int = 0
    to_step: int | None = None  # None: up to the newest
    points: int = 1_000
    attempt: int | None = None  # None: the newest attempt over what earlier ones left


@dataclass(frozen=True)
class Buckets:
    """Downsampled history of R rows (layers, or one scalar) in B buckets of ``bucket_steps`` steps.

    ``steps`` [B] is the first step of each bucket (the exact step when ``bucket_steps`` is 1);
    buckets are aligned to multiples of ``bucket_steps``, so a growing run does not move old ones,
    and empty buckets are left out. ``mean``, ``min`` and ``max`` are float32 [R, B] over the finite
    values; a bucket with values but no finite one is NaN in all three, one with no value is ABSENT.
    ``nonfinite`` counts non-finite values per row and bucket.
    """

    rows: tuple[str, ...]
    steps: Steps
    mean: Floats
    min: Floats
    max: Floats
    nonfinite: npt.NDArray[np.int32]
    bucket_steps: int


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


class Store(Records, AlertStore, Protocol):
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

    # Reads
    def latest(self, run: str) -> Latest:
        """Return the newest values. Raises `RunUnknown`."""

    def metrics(self, run: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the metrics and of the scalars the run has reported, sorted."""

    def history(self, run: str, metric: str, layers: Sequence[str], window: Window) -> Buckets:
        """Return one metric of some layers. Raises `RunUnknown`, `LayerUnknown`."""

    def scalar_history(self, run: str, scalar: str, window: Window) -> Buckets:
        """Return one scalar. Raises `RunUnknown`."""

    def heatmap(self, run: str, metric: str, window: Window, layers: int) -> Buckets:
        """Return up to ``layers`` rows in model order; more layers than that share rows (max)."""

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
