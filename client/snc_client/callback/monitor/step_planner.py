"""StepPlanner: decides on the host which layers are measured, certified and capped at a step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from snc_client.callback.monitor.device_group import IDLE_LAG
from snc_client.callback.monitor.step_plan import StepPlan
from snc_client.callback.schedule.certify_schedule import CertifySchedule
from snc_client.callback.schedule.measure_schedule import Cadence, rounds_between, turns
from snc_client.devices import reading_is_free
from snc_client.layer_row import LayerRow, Mask

VANISHING = 1e-7  # gradient norm over weight norm: the same ratio as in the service's rule


class StepPlanner:
    """Plans the steps of L layers from the rows that have arrived on the host."""

    def __init__(
        self,
        num_layers: int,
        *,
        certify_every: int | None,
        strict: bool,
        max_overhead: float | None,
        idle_every: int | None,
        apart: Collection[int] = (),
    ) -> None:
        self._apart = np.zeros(num_layers, np.bool_)  # layers that others plan: always measured
        self._apart[list(apart)] = True
        self.cadence = Cadence(num_layers, max_overhead)
        self._proofs = Cadence(num_layers, None)  # of sigma_upper, for ``strict``
        self._schedule = CertifySchedule(num_layers, certify_every) if certify_every else None
        self._strict = strict
        self._idle_every = idle_every
        self._num_layers = num_layers
        self._known_from = 0

    @property
    def certifies(self) -> bool:
        """Return whether layers are certified in turns."""
        return self._schedule is not None

    def plan(self, step: int, held: Collection[int], *, all_gradients: bool) -> StepPlan | None:
        """Return the plan of ``step``, None if no layer is due; to be called once for each step.

        ``held`` are the layers to be rescaled or capped: ``strict`` measures them at every step.
        ``all_gradients``: whether their norm is wanted; it is measured when a turn begins.
        """
        due, in_turn = self.cadence.due(step)
        due[self._apart] = True
        if self._strict:
            due[sorted(held)] = True
        if not due.any():
            return None
        certified = np.zeros(self._num_layers, np.bool_)
        if self._schedule:
            certified[self._schedule.due(due & ~self._apart)] = True
        active = self.cadence.active
        in_turns = self.cadence.rounds * self.cadence.turns * self.cadence.pace > 1
        return StepPlan(
            measured=due | certified,
            certified=certified,
            capped=active,
            pressing=self._proofs.urgent(step),
            idle=~active & in_turns,
            written=np.ones(self._num_layers, np.bool_),
            all_gradients=all_gradients and in_turn,
        )

    def plan_of(self, step: int, layers: Mask, certified: Mask) -> StepPlan:
        """Return a plan that measures and holds just these ``layers`` ([L] bool) at ``step``."""
        return StepPlan(
            measured=layers,
            certified=certified & layers,
            capped=self.cadence.active,
            pressing=self._proofs.urgent(step),
            idle=np.zeros_like(layers),
            written=layers,
            all_gradients=False,
        )

    def learn(self, row: LayerRow) -> None:
        """Update the schedules with a row that has arrived."""
        sigma, threshold = row.metric("sigma"), row.metric("threshold")
        up = row.metric("scale") > 1  # brought up to its threshold: it is there now
        sigma = np.where(up, sigma * row.metric("scale"), sigma)
        if self._schedule:
            self._schedule.saw(row.step, np.where(self._apart, np.nan, sigma), threshold)
        if row.step > self._known_from:
            self.cadence.saw(row.step, sigma, threshold, _unusual(row))
            if self._strict:
                self._proofs.saw(row.step, row.metric("sigma_upper"), threshold)

    def restart(self, step: int) -> None:
        """Treat every layer as active until a row of a step after ``step`` has arrived."""
        self._known_from = step
        self.cadence.reset()
        self._proofs.reset()

    def renew(self, layers: Collection[int]) -> None:
        """Certify these layers at the next step: nothing is known of their weights."""
        if self._schedule:
            self._schedule.renew(layers)

    def widen(self, more: int) -> None:
        """Plan for ``more`` layers, the last ones."""
        self._num_layers += more
        self._apart = np.pad(self._apart, (0, more))
        self.cadence, self._proofs = self.cadence.wider(more), self._proofs.wider(more)
        if self._schedule:
            self._schedule = self._schedule.wider(more)

    def set_turns(self, devices: Iterable[torch.device], positions: Sequence[int]) -> None:
        """Choose the turns of idle layers for ``devices`` and the `Layer.positions` of each layer.

        A GPU measures all matrices in one launch, faster than the host could choose among them.
        """
        if self._idle_every is not None:
            self.cadence.turns = turns(self._num_layers, self._idle_every)
        else:
            on_cpu = all(map(reading_is_free, devices))
            self.cadence.turns = turns(self._num_layers) if on_cpu else 1
            self.cadence.rounds = rounds_between(positions)

    def rarely(self, layer: int) -> bool:
        """Return whether ``layer`` is not measured at every step while it is idle."""
        return bool(self.cadence.turns * self.cadence.rounds[layer] > 1)


def _unusual(row: LayerRow) -> Mask:
    """Return the layers whose warm block lags or whose gradient is negligible for the weight."""
    found: Mask = row.metric("residual") > IDLE_LAG * row.metric("sigma")
    if "grad_norm" in row.metrics and "frobenius" in row.metrics:
        found |= row.metric("grad_norm") < VANISHING * row.metric("frobenius")
    return found  # a comparison with ABSENT, a NaN, is False
