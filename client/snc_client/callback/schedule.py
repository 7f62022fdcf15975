"""Which layers are certified at a step: decided on the host, from figures that have arrived."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# A sigma that moved by more than this share in one step wants a certificate now.
JUMP = 0.05


class CertifySchedule:
    """Round-robin: every layer once in ``every`` measurements, spread evenly, so no step spikes.

    Within a round the layers nearest to their thresholds come first. A layer with a threshold whose
    sigma crossed it or moved by more than 5 % a step is next; one such layer per measurement.
    """

    def __init__(self, num_layers: int, every: int) -> None:
        self._every = every
        self._rate = num_layers / every
        self._credit = 0.0
        self._queue: deque[int] = deque()
        self._ratio = np.zeros(num_layers, np.float32)
        self._sigma = np.full(num_layers, np.nan, np.float32)
        self._seen = np.zeros(num_layers, np.int64)  # step of that sigma
        self._urgent: deque[int] = deque(maxlen=num_layers)

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

    def due(self) -> list[int]:
        """Return the layers to certify now, and count them as certified."""
        chosen = [self._urgent.popleft()] if self._urgent else []
        self._credit += self._rate
        while self._credit >= 1.0:
            self._credit -= 1.0
            if not self._queue:
                self._queue.extend(int(i) for i in np.argsort(-self._ratio, kind="stable"))
            chosen.append(self._queue.popleft())
        return sorted(set(chosen))
