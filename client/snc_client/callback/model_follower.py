"""ModelFollower: keeps the measured layers equal to those that the model has now."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from snc_client.callback.guard.guard import Guard
from snc_client.callback.model.optimizer_steps import OptimizerSteps
from snc_client.callback.model.rescan import called
from snc_client.callback.model.structure import ModelStructure
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.policy_in_force import PolicyInForce
from snc_client.callback.service.reporter import Reporter
from snc_client.layers import Coverage

log = logging.getLogger("snc")


class ModelFollower:
    """Walks a model again when it has changed, and hands its layers to all who keep a list."""

    def __init__(
        self,
        model: nn.Module,
        coverage: Coverage,
        find: Callable[..., Coverage],
        monitor: LayerMonitor,
        policy: PolicyInForce,
        signals: NormSignals,
        guard: Guard | None,
        steps: OptimizerSteps,
        reporter: Reporter,
    ) -> None:
        self.coverage = coverage
        self._model = model
        self._find = find
        self._monitor = monitor
        self._policy = policy
        self._signals = signals
        self._guard = guard
        self._steps = steps
        self._reporter = reporter
        self._structure = ModelStructure(model)
        self._missing = monitor.missing

    def changed(self) -> bool:
        """Return whether the model has changed, or a layer could not be looked up."""
        return bool(self._monitor.missing - self._missing) or self._structure.changed()

    def rescan(self, step: int) -> Coverage:
        """Find the layers again, measure and report them from ``step`` on, and log what changed."""
        found = self._find(self._model, all_must_match=False)
        roll = called(self._monitor.layers, found, step)
        policies = self._policy.by_layer(roll.layers)
        self._signals.relist(self._model)
        self._steps.relist(self._model)
        if self._guard is not None:
            self._guard.relist(self._model, roll.layers)
        with torch.no_grad():
            others = self._monitor.relist(roll.layers, policies, step, roll.resized)
        self._reporter.relist(roll.layers)
        self._missing = self._monitor.missing
        self._structure.look(fruitless=not (others or roll.remarks))
        for remark in roll.remarks:
            log.warning("snc: %s", remark)
        self.coverage = roll.coverage
        return roll.coverage
