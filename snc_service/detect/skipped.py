"""Steps that a loss scaler skipped: gradients overflowed, and no weight was touched."""

from __future__ import annotations

from typing import Final

import numpy as np

from snc_service.detect.batch_columns import BatchColumns, Mask
from snc_service.detect.memory import Memory
from snc_service.detect.running import Counts
from snc_service.detect.trends import log_norms
from snc_service.wire.batch import Floats

# A scaler that begins at 2^16 finds its factor within this many steps. If it goes on to skip, the
# gradients overflow whatever the factor.
MOST_IN_ROW: Final = 20


def untouched(signals: BatchColumns, memory: Memory, num_broken: Counts) -> Mask:
    """Return the rows [S] with broken values in which every weight is what it was.

    The Frobenius norms, of the same numbers summed in the same order, show it bit for bit. More
    than `MOST_IN_ROW` such rows in a row are not a scaler that looks for its factor.
    """
    skipped = np.zeros(len(num_broken), np.bool_)
    norm, sigma = signals.metric("frobenius"), signals.metric("sigma")
    if not num_broken.any() or norm is None:
        memory.skipped_in_row = 0 if not num_broken.all() else memory.skipped_in_row
        return skipped
    known: Floats | None = None
    now = log_norms(signals, memory)
    spoilt = norm.broken.any(axis=1)
    if sigma is not None:
        spoilt |= sigma.broken.any(axis=1)
    for row, broken in enumerate((num_broken > 0).tolist()):
        if not broken:
            known, memory.skipped_in_row = now[row], 0
            continue
        places = memory.places(tuple(signals.layers))
        before = memory.columns["newest_norm"][places]
        reference = before if known is None else known
        measured = ~np.isnan(reference) & ~np.isnan(now[row])
        same = not spoilt[row] and bool(measured.any() and np.array_equal(now[row][measured], reference[measured]))
        memory.skipped_in_row = memory.skipped_in_row + 1 if same else MOST_IN_ROW
        skipped[row] = memory.skipped_in_row <= MOST_IN_ROW and same
    return skipped
