"""Cadence: selects the layers to measure at a step, within the allowed overhead."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_client.layer_row import ACTIVE, Floats, Mask
from snc_service.wire import absent

Counts: TypeAlias = npt.NDArray[np.int64]

log = logging.getLogger("snc")

# Idle layers are divided into five turns: the rules of the service, replayed on 142 labelled runs,
# then find the same failures as in full rows. Turns of one layer could leave a row without layers.
TURNS, LEAST_IN_TURN = 5, 2
LONGEST = 50  # steps between two measurements of an idle layer, at most
NEVER = 10**9  # steps: the layer waits for its turn
JUDGED = 8  # rows between two changes of the pace: the time of one row is too noisy
FORGET = 0.9  # decay of the largest growth, per measurement
# A product with a convolution as an operator uses each number of the kernel at every position: a
# turn of it costs as much as that of many matrices, so idle ones take their turn less often.
POSITIONS = 64
# A layer whose sigma moves by this share a step, up or down, is measured at every step meanwhile:
# an unusual value must appear in several consecutive rows.
RESTLESS = 0.03
# The least growth assumed, as a share of sigma per step: 99.9 % of the steps of sound training move
# no layer by more.
GROWTH = 0.025


class Due(NamedTuple):
    """The layers to measure at a step, [L] bool; ``in_turn``: with a turn of idle layers."""

    layers: Mask
    in_turn: bool


def turns(num_layers: int, most: int = TURNS) -> int:
    """Return the number of turns, of one step each, for ``num_layers`` layers."""
    return min(most, max(1, num_layers // LEAST_IN_TURN))


def rounds_between(positions: Sequence[int]) -> Counts:
    """Return the rounds of turns that each idle layer lets pass, [L], by its `Layer.positions`.

    1 up to 64 positions, and at most as many as keep an idle layer within 50 steps.
    """
    return np.clip(-(-np.array(positions, np.int64) // POSITIONS), 1, LONGEST // TURNS)


class Cadence:
    """Selects active layers at every measurement and idle ones in turns, within ``max_overhead``.

    A layer is active from 0.9 of its threshold on, and until its first row arrives. ``odd`` layers,
    those with an unusual value, are measured as often. Idle layers, with no threshold or far below
    it, are divided into ``turns``: every ``pace``-th measurement includes the next turn. A layer
    takes its turn once in ``rounds`` ([L]) rounds of all turns. An idle layer is always measured
    before twice its largest recent growth (at least 5 % of its sigma a step) could have made it
    active. ``max_overhead`` is a share of the step time: above it the pace slows down, to 50 steps
    a round; None keeps the pace at 1. The host decides from rows that have arrived.
    """

    def __init__(self, num_layers: int, max_overhead: float | None, *, turns: int = 1) -> None:
        self.turns, self.pace = turns, 1
        self.rounds: Counts = np.ones(num_layers, np.int64)
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
        """Return a cadence with ``more`` layers and the same pace; all layers count as active."""
        cadence = Cadence(len(self.active) + more, self._max, turns=self.turns)
        cadence.pace, cadence._said = self.pace, self._said
        cadence.rounds = np.pad(self.rounds, (0, more), constant_values=1)
        return cadence

    def due(self, step: int) -> Due:
        """Return the layers to measure at ``step``, and count the measurement."""
        turn, calls_since = divmod(self._calls, self.pace)
        self._calls += 1
        in_turn = calls_since == 0
        urgent = self.urgent(step)
        if not in_turn:
            return Due(urgent, False)
        round_, place = np.divmod(self._turn + turn, self.turns)
        # A slow pace makes a round longer, so fewer of them fit.
        rounds = np.minimum(self.rounds, max(1, LONGEST // (self.turns * self.pace)))
        return Due(urgent | ((place == 0) & (round_ % rounds == 0)), True)

    def urgent(self, step: int) -> Mask:
        """Return the layers that must not wait for their turn at ``step``, [L] bool."""
        urgent: Mask = self.active | self.odd | (step >= self._deadline)
        return urgent

    def reset(self) -> None:
        """Treat every layer as active until its next row, after a change of policy or weights."""
        self.active[:] = True
        self._sigma[:] = np.nan
        self._seen[:] = 0

    def saw(self, step: int, sigma: Floats, threshold: Floats, odd: Mask | None = None) -> None:
        """Record a row that has arrived, float32 [L] each; ABSENT where a layer was not measured.

        ``odd`` ([L] bool) marks measured layers with an unusual value other than sigma.
        """
        new = ~absent(sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = (sigma - self._sigma) / np.maximum(step - self._seen, 1)
            restless = np.abs(moved) > RESTLESS * self._sigma
            growth = np.fmax(np.fmax(moved, 0.0), FORGET * self._growth)
            room = (ACTIVE * threshold - sigma) / (2.0 * np.fmax(growth, GROWTH * sigma))
        steps = np.fmax(np.fmin(room, NEVER), 1.0).astype(np.int64)  # NaN: never
        # A layer whose sigma is not finite is active if it has a threshold.
        active = ~(sigma < ACTIVE * threshold) & ~absent(threshold)
        self._growth = np.where(new & np.isfinite(growth), growth, self._growth)
        self._sigma = np.where(new, sigma, self._sigma)
        self._seen = np.where(new, step, self._seen)
        self._deadline = np.where(new, step + steps, self._deadline)
        self.active = np.where(new, active, self.active)
        self.odd = np.where(new, restless if odd is None else restless | odd, self.odd)

    @property
    def limited(self) -> bool:
        """Return whether `paid` changes the pace."""
        return self._max is not None

    def paid(self, callback_seconds: float, seconds: float) -> None:
        """Record the cost of a row and the seconds since the previous one; adapt the pace."""
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
