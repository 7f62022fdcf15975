"""Which layers are certified at a step: decided on the host, from figures that have arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import numpy as np

from snc_client.layer_row import Floats, Mask

# A sigma that moved by more than this share in one step wants a certificate now.
JUMP = 0.05


class CertifySchedule:
    """Every layer once in ``every`` of its measurements, spread evenly, so no step spikes.

    The one that was measured most often since its last certificate comes first, of several the
    nearest to its threshold. A layer with a threshold whose sigma crossed it or moved by more than
    5 % a step is next; one such layer per measurement.
    """

    def __init__(self, num_layers: int, every: int) -> None:
        self._every = every
        self._credit = 0.0
        self._waited = np.zeros(num_layers, np.int64)  # measurements since the last certificate
        self._ratio = np.zeros(num_layers, np.float32)
        self._sigma = np.full(num_layers, np.nan, np.float32)
        self._seen = np.zeros(num_layers, np.int64)  # step of that sigma
        self._urgent: deque[int] = deque(maxlen=num_layers)
        self._new: set[int] = set()  # without a certificate that says anything of them

    def wider(self, more: int) -> CertifySchedule:
        """Return one of so many more layers, at the beginning of a round."""
        return CertifySchedule(len(self._ratio) + more, self._every)

    def saw(self, step: int, sigma: Floats, threshold: Floats) -> None:
        """Take in a measurement that has arrived, float32 [L] each; NaN where there is none."""
        steps = np.maximum(step - self._seen, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.nan_to_num(sigma / threshold, nan=0.0, posinf=0.0)
            moved = np.abs(sigma / self._sigma - 1.0) > JUMP * steps
        wanted = np.flatnonzero((moved & (threshold > 0)) | ((ratio > 1.0) & (self._ratio <= 1.0)))
        self._urgent.extend(int(i) for i in wanted if i not in self._urgent)
        self._ratio = np.where(np.isfinite(sigma), ratio, self._ratio)
        self._sigma = np.where(np.isfinite(sigma), sigma, self._sigma)
        self._seen = np.where(np.isfinite(sigma), step, self._seen)

    def renew(self, layers: Collection[int]) -> None:
        """Certify these layers at the next measurement: their weights were exchanged."""
        self._new |= set(layers)

    def due(self, measured: Mask) -> list[int]:
        """Return which layers to certify now, and count them as certified.

        They are among the ``measured`` ones ([L] bool), but for new ones and one that is urgent.
        """
        self._waited += measured
        self._credit += int(measured.sum()) / self._every
        chosen = [*self._new, *([self._urgent.popleft()] if self._urgent else [])]
        self._new.clear()
        if self._credit >= 1.0:
            here = np.flatnonzero(measured)
            order = np.lexsort((-self._ratio[here], -self._waited[here]))
            in_turn = here[order[: int(self._credit)]]
            self._credit -= len(in_turn)
            self._waited[in_turn] = 0
            chosen += in_turn.tolist()
        return sorted(set(chosen))
