"""Where a row's sigma_upper comes from: a certificate of its step, a carried one, or the past."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from snc_client.callback.readback.latest import METRICS
from snc_service.wire import ABSENT, absent

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_SIGMA, _UPPER = METRICS.index("sigma"), METRICS.index("sigma_upper")


class Origins:
    """Gives every measurement a sigma_upper, and says what it is worth, layer by layer.

    ``certified_age`` counts the steps since the certificate it goes back to, ``bound_age`` those
    since it was last known to be a bound. (0, 0): certified at this step. (n, 0): carried to this
    step, a bound too. (n, k): that of k steps ago, which the weight may have outgrown; no bound.
    Absent where a layer was not measured, is not finite, or has had no certificate yet.
    """

    def __init__(self, num_layers: int) -> None:
        self._upper = np.full(num_layers, ABSENT, np.float32)
        self._certified = np.zeros(num_layers, np.int64)  # the step of its certificate
        self._held = np.zeros(num_layers, np.int64)  # the last step at which it was a bound

    def completed(self, step: int, values: Floats, certified: Mask) -> Floats:
        """Return [M + 2, L]: ``values`` (float32 [M, L]) with sigma_upper filled up, and ages."""
        upper = values[_UPPER]
        # Infinite without a certificate: nothing is known of the layer.
        bound = ~absent(upper) & (np.isfinite(upper) | certified)
        fresh = certified & bound
        self._certified = np.where(fresh, step, self._certified)
        self._held = np.where(bound, step, self._held)
        self._upper = np.where(bound, upper, self._upper)
        old = ~bound & np.isfinite(values[_SIGMA]) & ~absent(self._upper)
        filled = values.copy()
        known = bound | old
        filled[_UPPER] = np.where(known, self._upper, ABSENT)
        since = np.stack([self._certified, self._held])
        ages = np.where(known, (step - since).astype(np.float32), ABSENT)
        return np.concatenate([filled, ages])

    def wider(self, more: int) -> Origins:
        """Return one of so many more layers, of which nothing is known."""
        origins = Origins(len(self._upper) + more)
        known = slice(0, len(self._upper))
        origins._upper[known] = self._upper
        origins._certified[known], origins._held[known] = self._certified, self._held
        return origins
