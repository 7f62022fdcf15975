"""Planned changes: what an annotation of a run does to its rules.

From the annotated step on the past is no measure any more: running means begin anew, rules that
compare with the past arm themselves again, and they say nothing for as long as was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from snc_service.detect.batch_columns import Mask
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.store.types import RunRows

# What is wrong whatever was planned is still told: values that are not finite, thresholds, the
# guard, and updates out of all proportion to their weight.
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
    )
)


@dataclass(frozen=True, eq=False)
class Planned:
    """Which rows [S] begin anew, and in which relative rules say nothing."""

    anew: Mask
    muted: Mask

    def settled(self, trained: Counts, memory: Memory) -> Counts:
        """Return how many training rows [S] came since the past last began anew; -1: muted."""
        if not self.anew.any() and not self.muted.any():
            return trained - memory.begun
        begun = np.maximum.accumulate(np.where(self.anew, trained, memory.begun))
        memory.begun = int(begun[-1])
        return np.where(self.muted, -1, trained - begun)


def planned(rows: RunRows, memory: Memory) -> Planned:
    """Return what the annotations that rows carry mean for them; each begins anew once."""
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
