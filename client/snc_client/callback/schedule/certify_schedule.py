"""CertifySchedule: the host selects the layers to certify at a step, from arrived rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import numpy as np

from snc_client.layer_row import Floats, Mask

# A sigma that changes by more than this share in one step makes its layer urgent.
JUMP = 0.05


class CertifySchedule:
    """Certifies each layer once in ``every`` of its measurements, spread evenly over the steps.

    The layer with the most measurements since its last certificate comes first; of several, the one
    nearest to its threshold. One urgent layer per measurement is certified out of turn. A layer is
    urgent if it has a threshold and its sigma crossed that or moved by more than 5 % a step.
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
        """Return a schedule with ``more`` additional layers that starts a new round."""
        return CertifySchedule(len(self._ratio) + more, self._every)

    def saw(self, step: int, sigma: Floats, threshold: Floats) -> None:
        """Record a row that has arrived, float32 [L] each; NaN where a layer was not measured."""
        steps = np.maximum(step - self._seen, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            quotient = sigma / threshold
            moved = np.abs(sigma / self._sigma - 1.0) > JUMP * steps
        ratio = np.where(np.isfinite(quotient), quotient, np.float32(0.0))
        wanted = (moved & (threshold > 0)) | ((ratio > 1.0) & (self._ratio <= 1.0))
        if wanted.any():
            self._urgent.extend(i for i in wanted.nonzero()[0].tolist() if i not in self._urgent)
        known = np.isfinite(sigma)
        self._ratio = np.where(known, ratio, self._ratio)
        self._sigma = np.where(known, sigma, self._sigma)
        self._seen = np.where(known, step, self._seen)

    def renew(self, layers: Collection[int]) -> None:
        """Certify these layers at the next measurement: their weights were exchanged."""
        self._new |= set(layers)

    def due(self, measured: Mask) -> list[int]:
        """Return the layers to certify now, and count them as certified.

        All but new and urgent ones are among the ``measured`` layers ([L] bool).
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
