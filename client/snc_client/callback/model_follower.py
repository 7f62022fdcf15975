"""ModelFollower: keeps the measured layers equal to those that the model has now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

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
from snc_client.layers import Coverage, Layer

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
        self._groups = steps.groups()
        self._missing = monitor.missing

    def changed(self) -> bool:
        """Return whether the model has changed, or a layer could not be looked up."""
        lost = self._monitor.missing - self._missing
        return bool(lost) or self._steps.groups() != self._groups or self._structure.changed()

    def rescan(self, step: int) -> Coverage:
        """Find the layers again, measure and report them from ``step`` on, and log what changed."""
        self._groups = self._steps.groups()
        found = self._find(self._model, all_must_match=False)
        found = replace(found, layers=tuple(map(self._trained, found.layers)))
        roll = called(self._monitor.layers, found, step)
        policies = self._policy.by_layer(roll.layers)
        self._signals.relist(self._model)
        self._signals.leave(roll.layers)
        self._steps.relist(self._model)
        if self._guard is not None:
            self._guard.relist(self._model, roll.layers)
        with torch.no_grad():
            others = self._monitor.relist(roll.layers, policies, step, roll.resized)
        self._reporter.relist(roll.layers, self._signals.gains)
        self._missing = self._monitor.missing
        self._structure.look(fruitless=not (others or roll.remarks))
        for remark in roll.remarks:
            log.warning("snc: %s", remark)
        self.coverage = roll.coverage
        return roll.coverage

    def _trained(self, layer: Layer) -> Layer:
        """Return the layer; one that is frozen now, but was trained since, as it was before.

        A GAN freezes its critic while the generator is trained, after the critic's own step.
        """
        before = next((x for x in self._monitor.layers if x.name == layer.name), None)
        if layer.writable or before is None or not before.writable:
            return layer
        parameter = layer.parameter()
        if parameter is None or parameter.requires_grad or not self._steps.written(parameter):
            return layer
        return replace(layer, writable=True, note=before.note)
