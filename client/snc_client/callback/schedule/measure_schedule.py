"""Which layers are measured at a step, so that the callback costs no more than it may."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from snc_client.layer_row import ACTIVE, Floats, Mask
from snc_service.wire import absent

log = logging.getLogger("snc")

# Turns into which idle layers are divided: the rules of the service, replayed on 142 labelled runs,
# catch the same failures as from full rows. A turn of one layer would leave rows without any.
TURNS, LEAST_IN_TURN = 5, 2
LONGEST = 50  # steps that an idle layer may go without a measurement
NEVER = 10**9  # steps: the layer waits for its turn
JUDGED = 8  # rows between two changes of the pace: one row's clock is too noisy
FORGET = 0.9  # of the largest growth, per measurement
# A layer whose sigma moved by this share a step, up or down, is measured at every step meanwhile:
# what is unusual has to be seen several times in a row.
RESTLESS = 0.03
# A layer is taken to grow by this share of its sigma a step at least: 99.9 % of the steps of sound
# training move no layer by more.
GROWTH = 0.025


class Due(NamedTuple):
    """What is to be done at a step: which layers, [L] bool, and whether idle ones have a turn."""

    layers: Mask
    in_turn: bool


def turns(num_layers: int, most: int = TURNS) -> int:
    """Return into how many turns so many layers are divided, one step each."""
    return min(most, max(1, num_layers // LEAST_IN_TURN))


class Cadence:
    """Active layers at every measurement, idle ones in turns, as often as ``max_overhead`` allows.

    A layer is active from 0.9 of its threshold on, and until its first row arrives; ``odd`` ones,
    about which something is unusual, are measured as often. Idle layers,
    with no threshold or far below it, are divided into ``turns``; at every ``pace``-th measurement
    the next turn is measured, and an idle layer in any case before twice its largest recent growth
    (5 % of its sigma a step at least) could have made it active. ``max_overhead`` is a share of the
    time of a step: where it is exceeded the pace is slowed down, to 50 steps a round; None keeps it
    at 1. All is decided on the host, from rows that have arrived.
    """

    def __init__(self, num_layers: int, max_overhead: float | None, *, turns: int = 1) -> None:
        self.turns, self.pace = turns, 1
        self.active: Mask = np.ones(num_layers, np.bool_)
        self.odd: Mask = np.zeros(num_layers, np.bool_)
        self._max = max_overhead
        self._turn = np.arange(num_layers)
        self._calls = 0
        self._sigma = np.full(num_layers, np.nan, np.float32)
        self._growth = np.zeros(num_layers, np.float32)
        self._seen = np.zeros(num_layers, np.int64)  # step of the newest value
        self._deadline = np.zeros(num_layers, np.int64)  # measure again by this step
        self._spent = self._passed = 0.0
        self._rows = 0
        self._said = False

    def wider(self, more: int) -> Cadence:
        """Return one of so many more layers that takes all of them for active; the pace stays."""
        cadence = Cadence(len(self.active) + more, self._max, turns=self.turns)
        cadence.pace, cadence._said = self.pace, self._said
        return cadence

    def due(self, step: int) -> Due:
        """Return what to measure at ``step``, and count it."""
        turn, calls_since = divmod(self._calls, self.pace)
        self._calls += 1
        in_turn = calls_since == 0
        urgent = self.urgent(step)
        if not in_turn:
            return Due(urgent, False)
        return Due(urgent | ((self._turn + turn) % self.turns == 0), True)

    def urgent(self, step: int) -> Mask:
        """Return which layers are not to wait for their turn at ``step``, [L] bool."""
        urgent: Mask = self.active | self.odd | (step >= self._deadline)
        return urgent

    def reset(self) -> None:
        """Take every layer for active until its next row: policy or weights have changed."""
        self.active[:] = True
        self._sigma[:] = np.nan
        self._seen[:] = 0

    def saw(self, step: int, sigma: Floats, threshold: Floats, odd: Mask | None = None) -> None:
        """Take in a row that has arrived, float32 [L] each; ABSENT where nothing was measured.

        ``odd`` [L] says about which of the layers measured something else than sigma is unusual.
        """
        new = ~absent(sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = (sigma - self._sigma) / np.maximum(step - self._seen, 1)
            restless = np.abs(moved) > RESTLESS * self._sigma
            growth = np.fmax(np.fmax(moved, 0.0), FORGET * self._growth)
            room = (ACTIVE * threshold - sigma) / (2.0 * np.fmax(growth, GROWTH * sigma))
        steps = np.clip(np.nan_to_num(room, nan=NEVER), 1, NEVER).astype(np.int64)
        # A layer that is not finite is active where it has a threshold.
        active = ~(sigma < ACTIVE * threshold) & ~absent(threshold)
        self._growth = np.where(new & np.isfinite(growth), growth, self._growth)
        self._sigma = np.where(new, sigma, self._sigma)
        self._seen = np.where(new, step, self._seen)
        self._deadline = np.where(new, step + steps, self._deadline)
        self.active = np.where(new, active, self.active)
        self.odd = np.where(new, restless if odd is None else restless | odd, self.odd)

    def paid(self, callback_seconds: float, seconds: float) -> None:
        """Take in what a row cost, and the seconds since the row before; adapt the pace."""
        if self._max is None:
            return
        self._spent += callback_seconds
        self._passed += seconds
        self._rows += 1
        if self._rows < JUDGED:
            return
        share = self._spent / max(self._passed, 1e-9) / self._max
        self._spent = self._passed = 0.0
        self._rows = 0
        if share > 1.0:
            self._slow_down(share)
        elif share < 0.5:
            self.pace = max(1, self.pace // 2)

    def _slow_down(self, share: float) -> None:
        wanted = int(np.ceil(self.pace * share))
        slowest = LONGEST // self.turns
        self.pace = min(max(wanted, self.pace + 1), slowest)
        if wanted > slowest and not self._said:
            self._said = True
            log.warning(
                "snc: max_overhead cannot be kept: active layers and the fixed part of a "
                "measurement take %.1f times as much",
                share,
            )
