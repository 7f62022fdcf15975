"""StepSequence: what happens at one optimizer step, and in which order."""

from __future__ import annotations

import time
from typing import Any

from snc_client.callback.collector import RowCollector
from snc_client.callback.ending import training_goes_on
from snc_client.callback.guard.settings import GuardStopped
from snc_client.callback.model.optimizer_steps import OptimizerSteps
from snc_client.callback.model.ownership import Ownership
from snc_client.callback.model_follower import ModelFollower
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.policy_in_force import PolicyInForce
from snc_client.callback.readback.latest import ThresholdBreached
from snc_client.callback.schedule.network_bound import NetworkBound
from snc_client.callback.schedule.overhead import Overhead
from snc_client.callback.schedule.threshold_schedule import ThresholdFactor
from snc_client.callback.service.reporter import Reporter


class StepSequence:
    """Counts steps, and measures, acts and reports once in ``every`` of them.

    In this order: rows that have arrived are collected, changes of the model and the policy are
    followed, layers are measured and held. ``step`` is the number of steps counted so far.
    """

    def __init__(
        self,
        every: int,
        monitor: LayerMonitor,
        collector: RowCollector,
        follower: ModelFollower,
        policy: PolicyInForce,
        ownership: Ownership,
        factor: ThresholdFactor,
        signals: NormSignals,
        network: NetworkBound,
        overhead: Overhead,
        reporter: Reporter,
        optimizer_steps: OptimizerSteps,
    ) -> None:
        self.step = 0
        self._every = every
        self._monitor = monitor
        self._collector = collector
        self._follower = follower
        self._policy = policy
        self._ownership = ownership
        self._factor = factor
        self._signals = signals
        self._network = network
        self._overhead = overhead
        self._reporter = reporter
        self._optimizer_steps = optimizer_steps
        self._ended = False

    def end(self) -> None:
        """Do nothing from now on."""
        self._ended = True

    def advance(self, scalars: dict[str, Any]) -> None:
        """Count a step; measure and hold the layers if it is due.

        Raises the `ThresholdBreached` or `GuardStopped` that a row says which has arrived, after
        the measurement of this step.
        """
        if self._ended:
            return
        self._overhead.enter()
        self.step += 1
        training_goes_on()
        self._reporter.at_step()
        if self.step % self._every:
            return
        with self._monitor.taking_part(self.step):
            self._measured(scalars)

    def _measured(self, scalars: dict[str, Any]) -> None:
        """Collect what has arrived, and measure; raise what the rows say after that.

        A row that cannot be processed is lost, and the layers are measured and held all the same.
        """
        breach: ThresholdBreached | GuardStopped | None = None
        try:
            breach = self._collector.collect()
        finally:
            try:
                self._measure(scalars)
            finally:
                self._overhead.spent(self._overhead.inside())
                if breach is not None:
                    raise breach

    def hold(self, place: int) -> None:
        """Hold the layers of another optimizer than the first, which has just stepped."""
        if self._ended or self.step % self._every:
            return
        began = time.perf_counter()
        if (layers := self._ownership.of(place)).any():
            # Before the first counted step there is no row that these values belong to.
            self._monitor.hold(self.step or -1, layers)
        self._overhead.spent(time.perf_counter() - began)

    def _measure(self, scalars: dict[str, Any]) -> None:
        if self._follower.changed():
            self._follower.rescan(self.step)
        taken = self._reporter.take_policy()
        if taken is not None:
            self._policy.replace(*taken, self._monitor, step=self.step)
        self._monitor.stretch(self._factor.at(self.step), step=self.step - 1)
        if scalars.get("lr") is None:
            scalars |= self._optimizer_steps.learning_rate()
        scalars = self._signals.wanted(scalars)
        scalars |= self._network.at(self.step) | self._signals.declared
        steps, seconds = self._overhead.since_row()
        if steps:
            scalars["step_seconds"] = seconds / steps
        if self._optimizer_steps.skipped:
            scalars["skipped_steps"] = self._optimizer_steps.skipped
        row = self._monitor.measure(self.step, scalars, self._ownership.others)
        if row is not None:
            self._overhead.row_begins()
            row.num_steps = steps or self._every
            row.host_seconds = self._overhead.inside()
