"""BoundProvenance: records whether each sigma_upper is certified, carried or aged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from snc_client.callback.readback.metrics import AGE_METRICS
from snc_client.layer_row import LayerRow
from snc_service.wire import ABSENT, absent


class BoundProvenance:
    """Gives every measured layer a sigma_upper and its two ages.

    ``certified_age`` is the number of steps since the certificate behind it; ``bound_age`` the
    number of steps since it was last known to be a bound:

    * (0, 0): certified at this step;
    * (n, 0): carried to this step from a certificate n steps old, a bound too;
    * (n, k): the bound of k steps ago. The weight may have outgrown it: it is no bound.

    ABSENT where a layer was not measured, is not finite, or has had no certificate yet.
    """

    def __init__(self, num_layers: int) -> None:
        self._upper = np.full(num_layers, ABSENT, np.float32)
        self._certified = np.zeros(num_layers, np.int64)  # the step of its certificate
        self._held = np.zeros(num_layers, np.int64)  # the last step at which it was a bound

    def completed(self, row: LayerRow) -> LayerRow:
        """Return the row with sigma_upper filled in and `AGE_METRICS` appended."""
        upper, certified = row.metric("sigma_upper"), row.certified
        assert certified is not None, "a row from a device says which layers were certified"
        # An infinite value without a certificate was carried from none: it bounds nothing.
        bound = ~absent(upper) & (np.isfinite(upper) | certified)
        fresh = certified & bound
        self._certified = np.where(fresh, row.step, self._certified)
        self._held = np.where(bound, row.step, self._held)
        self._upper = np.where(bound, upper, self._upper)
        old = ~bound & np.isfinite(row.metric("sigma")) & ~absent(self._upper)
        known = bound | old
        since = np.stack([self._certified, self._held])
        ages = np.where(known, (row.step - since).astype(np.float32), ABSENT)
        completed = replace(
            row,
            metrics=(*row.metrics, *AGE_METRICS),
            values=np.concatenate([row.values, ages]),
        )
        completed.metric("sigma_upper")[:] = np.where(known, self._upper, ABSENT)
        return completed

    def forget(self, layers: Collection[int]) -> None:
        """Drop what is known of these layers: their weights were exchanged."""
        self._upper[list(layers)] = ABSENT

    def wider(self, more: int) -> BoundProvenance:
        """Return a copy with ``more`` layers that have had no certificate."""
        provenance = BoundProvenance(len(self._upper) + more)
        known = slice(0, len(self._upper))
        provenance._upper[known] = self._upper
        provenance._certified[known] = self._certified
        provenance._held[known] = self._held
        return provenance
