"""Which layers are measured at a step, so that the callback costs no more than it may."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from snc_service.wire import absent

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

log = logging.getLogger("snc")

# A layer whose newest sigma reached this share of its threshold may breach at the next step.
ACTIVE = 0.9
LONGEST = 50  # steps that an idle layer may go without a measurement
JUDGED = 8  # rows between two changes of the interval: one row's clock is too noisy
FORGET = 0.9  # of the largest growth, per measurement


class Cadence:
    """Active layers at every measurement, idle ones in turn, as often as ``max_overhead`` allows.

    ``max_overhead`` is a share of the time of a step; None measures everything every time. A layer
    is active from 0.9 of its threshold on, and until its first row arrives. An idle one is measured
    before twice its largest recent growth could have made it active. All is decided on the host,
    from rows that have arrived.
    """

    def __init__(self, num_layers: int, max_overhead: float | None) -> None:
        self.interval = 1
        self.active: Mask = np.ones(num_layers, np.bool_)
        self._max = max_overhead
        self._turn = np.arange(num_layers)
        self._sigma = np.full(num_layers, np.nan, np.float32)
        self._growth = np.zeros(num_layers, np.float32)
        self._seen = np.zeros(num_layers, np.int64)  # step of the newest value
        self._deadline = np.zeros(num_layers, np.int64)  # measure again by this step
        self._spent = self._passed = 0.0
        self._rows = 0
        self._said = False

    def wider(self, more: int) -> Cadence:
        """Return one of so many more layers that takes all of them for active; the pace stays."""
        cadence = Cadence(len(self.active) + more, self._max)
        cadence.interval, cadence._said = self.interval, self._said
        return cadence

    def due(self, step: int) -> Mask:
        """Return which layers to measure at ``step``, [L] bool."""
        if self.interval == 1:
            return np.ones(len(self.active), np.bool_)
        turn: Mask = (self._turn + step) % self.interval == 0
        return turn | self.urgent(step)

    def urgent(self, step: int) -> Mask:
        """Return which layers may be active at ``step``, whoever's turn it is, [L] bool."""
        urgent: Mask = self.active | (step >= self._deadline)
        return urgent

    def reset(self) -> None:
        """Take every layer for active until its next row: policy or weights have changed."""
        self.active[:] = True
        self._sigma[:] = np.nan
        self._seen[:] = 0

    def saw(self, step: int, sigma: Floats, threshold: Floats) -> None:
        """Take in a row that has arrived, float32 [L] each; ABSENT where nothing was measured."""
        new = ~absent(sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.fmax((sigma - self._sigma) / np.maximum(step - self._seen, 1), 0.0)
            growth = np.fmax(growth, FORGET * self._growth)
            room = (ACTIVE * threshold - sigma) / (2.0 * growth)
        steps = np.clip(np.nan_to_num(room, nan=LONGEST), 1, LONGEST).astype(np.int64)
        # A layer that is not finite is active where it has a threshold.
        active = ~(sigma < ACTIVE * threshold) & ~absent(threshold)
        self._growth = np.where(new & np.isfinite(growth), growth, self._growth)
        self._sigma = np.where(new, sigma, self._sigma)
        self._seen = np.where(new, step, self._seen)
        self._deadline = np.where(new, step + steps, self._deadline)
        self.active = np.where(new, active, self.active)

    def paid(self, callback_seconds: float, step_seconds: float) -> None:
        """Take in what a measurement cost, and how long a step takes; adapt the interval."""
        if self._max is None:
            return
        self._spent += callback_seconds
        self._passed += step_seconds
        self._rows += 1
        if self._rows < JUDGED:
            return
        share = self._spent / max(self._passed, 1e-9) / self._max
        self._spent = self._passed = 0.0
        self._rows = 0
        if share > 1.0:
            self._slow_down(share)
        elif share < 0.5:
            self.interval = max(1, self.interval // 2)

    def _slow_down(self, share: float) -> None:
        wanted = int(np.ceil(self.interval * share))
        self.interval = min(max(wanted, self.interval + 1), LONGEST)
        if wanted > LONGEST and not self._said:
            self._said = True
            log.warning(
                "snc: max_overhead cannot be kept: active layers and the fixed part of a "
                "measurement take %.1f times as much",
                share,
            )
