"""What a store raises on purpose, and nothing else of ours."""

from __future__ import annotations


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


class VersionConflict(StoreError):
    """A document changed since the version that the caller has seen."""

    def __init__(self, noun: str, current: int) -> None:
        verb = "are" if noun.endswith("settings") else "is"
        super().__init__(f"the {noun} in force {verb} version {current}")
        self.current = current


class TooManyAnnotations(StoreError):
    """The run has as many annotations as one may have."""


class RunFull(StoreError):
    """The run names as many things of a kind as one may; ``bound`` says which, as a setting."""

    def __init__(self, what: str, bound: str, limit: int, *, field: str) -> None:
        super().__init__(
            f"{what} of a run must be at most {limit:,}, and it has no room for more: send fewer "
            f"names, or let an operator raise SNC_{bound.upper()}"
        )
        self.bound = bound
        self.limit = limit
        self.field = field


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


class HistoryThinned(StoreError):
    """Exact values below a step were dropped: rollups of them are left."""

    def __init__(self, below: int) -> None:
        super().__init__(
            f"values below step {below} were dropped, but for min, max and mean of every 32 "
            f"measured steps: ask with from_step={below} or later"
        )
        self.below = below


class StoreUnavailable(StoreError):
    """The database cannot be reached or written (read-only, locked, gone)."""


class StoreFull(StoreUnavailable):
    """The disk is full: nothing was stored, and reading goes on."""
