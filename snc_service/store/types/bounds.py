"""How much one run, and a whole store, may hold of what is named or noted, beside its values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LEAST_TABLE: Final = 1_000  # layers that the smallest table counts as: each costs a look, too


@dataclass(frozen=True)
class RunBounds:
    """The most of each kind in one run; what a run has beyond a lowered bound, it keeps.

    Of events and incidents the oldest give way: what happens last is never refused.
    """

    metrics: int = 64  # names; every batch writes the newest value of each
    scalars: int = 512  # names
    layers: int = 65_536  # names, over all layer tables
    table_layers: int = 1_000_000  # of all layer tables together, each at least `LEAST_TABLE`
    layouts: int = 4_096  # layer table, metrics and scalars of a batch, in its order
    writers: int = 10_000
    attempts: int = 10_000  # ingest remembers all of them, a history looks at each
    annotations: int = 1_000  # detection looks at all of them
    commands: int = 10_000
    versions: int = 10_000  # of its policy, of its rule settings; of those of a project
    events: int = 100_000
    incidents: int = 1_000


@dataclass(frozen=True)
class StoreBounds:
    """The most of each kind in one store."""

    tokens: int = 10_000  # revoked ones included: every service holds all of them in memory
    projects: int = 10_000  # with a policy or rule settings of their own
    silences: int = 1_000  # in force: each is compared with every alert
    routings: int = 10_000  # versions of the routing of alerts


@dataclass(frozen=True)
class Bounds:
    """All bounds of a store."""

    run: RunBounds = field(default_factory=RunBounds)
    store: StoreBounds = field(default_factory=StoreBounds)
