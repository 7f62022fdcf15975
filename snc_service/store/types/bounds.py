"""How much one run may name: what its batches cost, and what it takes of memory, depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LEAST_TABLE: Final = 1_000  # layers that the smallest table counts as: each costs a look, too


@dataclass(frozen=True)
class RunBounds:
    """The most of each kind in one run; what a run has beyond a lowered bound, it keeps."""

    metrics: int = 64  # names; every batch writes the newest value of each
    scalars: int = 512  # names
    layers: int = 65_536  # names, over all layer tables
    table_layers: int = 1_000_000  # of all layer tables together, each at least `LEAST_TABLE`
    layouts: int = 4_096  # layer table, metrics and scalars of a batch, in its order
    writers: int = 10_000
