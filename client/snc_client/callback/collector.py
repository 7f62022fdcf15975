"""RowCollector: passes arrived rows to the guard, the overhead clock and the sender."""

from __future__ import annotations

import time

import numpy as np

from snc_client.callback.guard.guard import Guard, furthest
from snc_client.callback.guard.settings import GuardStopped
from snc_client.callback.model.distributed import several_ranks
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import GAIN, NormSignals
from snc_client.callback.readback.latest import ThresholdBreached
from snc_client.callback.schedule.overhead import Overhead
from snc_client.callback.service.reporter import Reporter
from snc_client.layer_row import Floats, LayerRow
from snc_service.wire import ABSENT


class RowCollector:
    """Takes arrived rows from the monitor. `collect` never waits for a device."""

    def __init__(
        self,
        monitor: LayerMonitor,
        guard: Guard | None,
        signals: NormSignals,
        overhead: Overhead,
        reporter: Reporter,
    ) -> None:
        self._monitor = monitor
        self._guard = guard
        self._signals = signals
        self._overhead = overhead
        self._reporter = reporter

    def collect(self) -> ThresholdBreached | GuardStopped | None:
        """Process all arrived rows; return the first reason among them to stop the training."""
        breach: ThresholdBreached | GuardStopped | None = None
        names = self._monitor.latest.names
        for pending, row in self._monitor.arrived():
            if self._guard is not None:
                stopped = self._guard.arrived(row.step, pending.scalars, furthest(row, names))
                breach = breach or stopped
            seconds = max(pending.host_seconds, pending.device_seconds)
            self._overhead.spent(seconds - pending.host_seconds)
            pending.scalars["callback_seconds"] = seconds / pending.num_steps
            cadence = self._monitor.cadence
            # Clocks differ, and all ranks must measure the same layers at a step.
            if cadence.limited and "step_seconds" in row.scalars and not several_ranks():
                cadence.paid(seconds, row.scalars["step_seconds"] * pending.num_steps)
            values = self._with_gains(row, pending.scalars)
            scalars = self._signals.wanted(pending.scalars)
            self._reporter.put(row.step, values, scalars, row.time)
            breach = breach or pending.breach(row, names)
        return breach

    def _with_gains(self, row: LayerRow, scalars: dict[str, float]) -> Floats:
        """Return a row [M, L] with the gains behind its layers; takes them from ``scalars``."""
        gains = self._signals.gains
        if not gains:
            return row.values
        more = np.full((len(row.metrics), len(gains)), ABSENT, np.float32)
        for place in range(len(gains)):
            norm = scalars.pop(f"{GAIN}{place}", None)
            if norm is not None and "frobenius" in row.metrics:
                more[list(row.metrics).index("frobenius"), place] = norm
        return np.concatenate((row.values, more), axis=1)

    def drain(self, seconds: float) -> None:
        """Collect until no row is pending, for at most ``seconds``; waits for the device."""
        deadline = time.monotonic() + seconds
        self.collect()
        while self._monitor.pending and time.monotonic() < deadline:
            time.sleep(1e-3)
            self.collect()
