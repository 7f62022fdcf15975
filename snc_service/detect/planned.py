"""Planned changes: what an annotation of a run does to its rules.

From the annotated step on, earlier rows are no reference. Running means restart, and rules that
compare with the past wait for new rows. These rules are muted for the quiet steps of the
annotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from snc_service.detect.batch_columns import Mask
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.store.types import RunRows

# The other rules stay active in a planned change: values that are not finite, breaches, the guard,
# and updates that are large relative to their weight.
RELATIVE: Final = frozenset(
    (
        "lr_jump",
        "sigma_jump",
        "sigma_growth",
        "sigma_vs_init",
        "coherent_growth",
        "grad_spike",
        "grad_vanish",
        "loss_divergence",
        "loss_trend",
        "loss_regain",
        "shrink",
        "gain_growth",
    )
)


@dataclass(frozen=True, eq=False)
class Planned:
    """The rows [S] at which running means restart, and those in which relative rules are muted."""

    anew: Mask
    muted: Mask

    def settled(self, trained: Counts, memory: Memory) -> Counts:
        """Return the number of training rows [S] since the last restart; -1: muted."""
        if not self.anew.any() and not self.muted.any():
            return trained - memory.begun
        begun = np.maximum.accumulate(np.where(self.anew, trained, memory.begun))
        memory.begun = int(begun[-1])
        return np.where(self.muted, -1, trained - begun)


def planned(rows: RunRows, memory: Memory) -> Planned:
    """Return the effect of the annotations on these rows; each restarts running means once."""
    anew, muted = np.zeros((2, len(rows.batch.steps)), np.bool_)
    if not rows.annotations:
        return Planned(anew, muted)
    steps = np.array(rows.batch.steps)
    for each in rows.annotations:
        muted |= (steps >= each.step) & (steps < each.step + each.quiet_steps)
        row = int(np.searchsorted(steps, each.step))
        if row < len(steps) and each.id not in memory.annotated:
            memory.annotated.append(each.id)
            anew[row] = True
    return Planned(anew, muted)
