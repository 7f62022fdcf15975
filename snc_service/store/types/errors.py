"""The errors of a store."""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors that a store raises on purpose."""


class RunUnknown(StoreError):
    """The run does not exist or was deleted."""


class LayerUnknown(StoreError):
    """The run has no layer of that name."""


class LayerTableUnknown(StoreError):
    """A batch names a layer table that the run has not registered."""


class LayerTableMismatch(StoreError):
    """A batch's number of layers differs from its table's."""


class SequenceGap(StoreError):
    """A batch's seq is above the next one; ``expected`` is the seq that the store waits for."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(f"seq must be {expected}, got {got}")
        self.expected = expected
        self.got = got


class SequenceConflict(StoreError):
    """A stored seq was sent again with other content."""


class VersionConflict(StoreError):
    """A document changed since the version that the caller read."""

    def __init__(self, noun: str, current: int) -> None:
        verb = "are" if noun.endswith("settings") else "is"
        super().__init__(f"the {noun} in force {verb} version {current}")
        self.current = current


class BoundReached(StoreError):
    """There is as much of a kind as there may be; ``bound`` says which, as a setting."""

    def __init__(self, what: str, bound: str, limit: int, field: str) -> None:
        super().__init__(
            f"{what} must be at most {limit:,}, and there is no room for more: make fewer, or let "
            f"an operator raise SNC_{bound.upper()}"
        )
        self.bound = bound
        self.limit = limit
        self.field = field


class RunFull(BoundReached):
    """The run has as much of a kind as one may have."""

    def __init__(self, what: str, bound: str, limit: int, field: str) -> None:
        super().__init__(f"{what} of a run", f"run_{bound}", limit, field)


class ServiceFull(BoundReached):
    """The whole store has as much of a kind as it may have."""

    def __init__(self, what: str, bound: str, limit: int, field: str) -> None:
        super().__init__(what, f"store_{bound}", limit, field)


class TokenUnknown(StoreError):
    """The token does not exist."""


class TokenExists(StoreError):
    """The name belongs or belonged to another token."""


class QuotaExceeded(StoreError):
    """The author has created the maximum number of runs."""


class RunClosed(StoreError):
    """The run has ended."""


class CommandsWaiting(StoreError):
    """The run has the maximum number of commands that wait for its job."""


class HistoryThinned(StoreError):
    """Exact values below a step were dropped; their rollups are kept."""

    def __init__(self, below: int) -> None:
        super().__init__(
            f"values below step {below} were dropped, but for min, max and mean of every 32 "
            f"measured steps: ask with from_step={below} or later"
        )
        self.below = below


class StoreDamaged(StoreError):
    """Stored values do not match their checksum: a disk or a copy has changed them.

    ``layers`` are the first and the last of a range, none for a scalar; ``steps`` likewise.
    ``place`` names the row.
    """

    def __init__(
        self,
        run: str,
        place: str,
        metrics: tuple[str, ...],
        layers: tuple[str, ...],
        num_layers: int,
        steps: tuple[int, int],
        rollup: bool = False,
    ) -> None:
        names = ", ".join(metrics) or "values"
        of = f" of layers {layers[0]!r} to {layers[1]!r}" if layers else ""
        what = f"min, max and mean of {names}" if rollup else names
        super().__init__(
            f"{what}{of} at steps {steps[0]} to {steps[1]} of run {run!r} must be as stored, got "
            f"other bytes ({place}): snc db verify lists all damage, snc db repair drops it; other "
            "layers can be read"
        )
        self.run = run
        self.place = place
        self.metrics = metrics
        self.layers = layers
        self.num_layers = num_layers
        self.steps = steps


class StoreUnavailable(StoreError):
    """The database cannot be reached or written (read-only, locked, gone)."""


class StoreFull(StoreUnavailable):
    """The disk is full: nothing was stored; reads still work."""
