"""Agreed: what all processes know of their sums from the start, whatever lies on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from snc_client.callback.monitor.sharded.groups import Owed
from snc_client.callback.monitor.sharded.layer_sums import Form
from snc_client.callback.monitor.sharded.roll_call import Members
from snc_client.estimator.sharded_power import row_runs
from snc_client.operators.sharded import ShardedMatrix, members

Stage: TypeAlias = dict[Members, tuple[list[int], list[int], bool]]
"""Layers whose W V is summed over a group, whose records are, and whether other gradients are."""


@dataclass(frozen=True)
class Agreed:
    """What all processes know of a layer from the start; its pieces must go on to fit it."""

    members: Members
    across: Members | None
    axis: int
    torn: tuple[int, ...]
    columns: int
    """Of W V in this process: the rows of its pieces."""
    form: Form
    proof: tuple[int, int]

    def fits(self, matrix: ShardedMatrix) -> bool:
        """Return whether the sums with these pieces are those that were agreed."""
        across = None if matrix.across is None else members(matrix.across)
        now = (members(matrix.group), across, matrix.axis, matrix.torn, columns(matrix))
        return now == (self.members, self.across, self.axis, self.torn, self.columns)


@dataclass(frozen=True)
class Agreement:
    """The sums of all layers; ``rest`` is how many numbers a group sums besides."""

    layers: Sequence[Agreed]
    rest: Mapping[Members, int]

    def stages(self) -> list[Stage]:
        """Return what is summed over each group, first and then: products W V, and records.

        Where two dimensions are cut, W V is a sum over one group before the record is over another.
        A group that has such sums takes the records of its own layers along. Each group takes what
        is known of other gradients along, once.
        """
        inner = {x.across for x in self.layers if x.across is not None}
        early: Stage = {g: ([], [], g in self.rest) for g in sorted(inner)}
        late: Stage = {g: ([], [], True) for g in self.rest if g not in early}
        for i, x in enumerate(self.layers):
            if x.across is not None:
                early[x.across][0].append(i)
            if x.across is None and x.members in early:
                early[x.members][1].append(i)
            else:
                late.setdefault(x.members, ([], [], False))[1].append(i)
        return [stage for stage in (early, late) if stage]

    def forms(self, proofs: Sequence[int]) -> list[Form]:
        """Return the form of each layer's record, with those of certificates for ``proofs``."""
        return [
            replace(x.form, proof=x.proof if i in proofs else None)
            for i, x in enumerate(self.layers)
        ]

    def owed(self, proofs: Sequence[int]) -> list[Owed]:
        """Return the sums of one measurement, in their order."""
        forms, kind = self.forms(proofs), dtype(proofs)
        found = []
        for stage in self.stages():
            for group, (first, whole, rest) in sorted(stage.items()):
                size = sum(self.layers[i].columns * forms[i].vectors for i in first)
                size += sum(forms[i].size for i in whole) + (self.rest[group] if rest else 0)
                found.append((group, size, kind))
        return found


def dtype(proofs: Sequence[int]) -> torch.dtype:
    """Return that of the sums of a measurement with these certificates."""
    return torch.float64 if proofs else torch.float32


def columns(matrix: ShardedMatrix) -> int:
    """Return how many numbers W V has here: the rows of its pieces."""
    return sum(size for _, size in row_runs(matrix))
