"""Start: the sharded layers of a job, once all its processes have agreed on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from snc_client.callback.model.distributed import joined, several_ranks
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.monitor.sharded.gradient_sums import GradientSums
from snc_client.callback.monitor.sharded.meeting import Meeting
from snc_client.callback.monitor.sharded.roll_call import Members
from snc_client.callback.monitor.sharded.sharded_group import ShardedGroup
from snc_client.layers import Coverage, Layer, Skipped
from snc_client.operators.sharded import members
from snc_client.policy import LayerPolicy

log = logging.getLogger("snc")

NEW = "sharded after the callback was made: not covered until another one is made"


class ShardedStart:
    """Decides which sharded layers are measured, the same in all processes of the job.

    Where they do not agree, none is: each process says so in one sentence, and lists them.
    """

    def __init__(self, find: Callable[..., Coverage]) -> None:
        self._find = find
        self._names: frozenset[str] = frozenset()
        self._why = NEW
        self._gone: Callable[[], Mapping[str, str]] = dict

    def find(self, *arguments: Any, **keywords: Any) -> Coverage:
        """Find the layers of a model; sharded ones that are not measured are among the skipped."""
        gone = self._gone()
        return without(
            self._find(*arguments, **keywords),
            lambda x: gone.get(x.name, None if x.name in self._names else self._why),
        )

    def met(
        self,
        model: nn.Module,
        policies_of: Callable[[Coverage], tuple[LayerPolicy, ...]],
        norms: NormSignals,
        settings: Mapping[str, Any],
    ) -> tuple[Coverage, tuple[LayerPolicy, ...], ShardedGroup | None]:
        """Return what is measured, its policies, and the group of the sharded layers, if any.

        ``settings`` have ``certify_every`` and ``strict``, and whatever else must be equal
        everywhere. Raises ValueError as ``find`` and ``policies_of`` do.
        """
        coverage = self._find(model)
        policies = policies_of(coverage)
        which = [i for i, x in enumerate(coverage.layers) if x.sharded]
        norms.sharded = bool(which) or any(x.sharded for x in coverage.skipped)
        meeting = Meeting() if joined() and several_ranks() else None
        if not which:
            if meeting is not None:
                meeting.passed()
            return coverage, policies, None
        layers = [coverage.layers[i] for i in which]
        gradients = GradientSums(model, layers, norms) if "grad_norm" in norms.metrics else None
        if meeting is not None:
            told = _told(layers, [policies[i] for i in which], settings, gradients)
            if (why := meeting.held(told)) is not None:
                self._why = f"sharded, and not measured: {why}"
                log.warning("snc: %d sharded layers are not measured: %s", len(which), why)
                coverage = without(coverage, lambda _: self._why)
                return coverage, policies_of(coverage), None
        group = ShardedGroup(
            layers,
            which,
            layers[0].weight().device,
            None if meeting is None else meeting.roll_call(),
            gradients,
            certify_every=settings["certify_every"],
            strict=settings["strict"],
            metrics=norms.metrics,
            steps_of=norms.steps_of,
        )
        self._names = frozenset(x.name for x in layers)
        self._gone = lambda: group.gone
        return coverage, policies, group


def without(coverage: Coverage, why: Callable[[Layer], str | None]) -> Coverage:
    """Return the coverage with the sharded layers for which there is a reason among the skipped."""
    reasons = {x.name: reason for x in coverage.layers if x.sharded and (reason := why(x))}
    if not reasons:
        return coverage
    kept = tuple(x for x in coverage.layers if x.name not in reasons)
    gone = tuple(
        Skipped(x.name, x.shape, reasons[x.name], sharded=True)
        for x in coverage.layers
        if x.name in reasons
    )
    lost = sum(_entries(x) for x in coverage.layers if x.name in reasons)
    measured = coverage.measured_parameters - lost
    return replace(
        coverage, layers=kept, skipped=(*coverage.skipped, *gone), measured_parameters=measured
    )


def _entries(layer: Layer) -> int:
    return torch.Size(layer.shape).numel()


def _version() -> str:
    try:
        return version("spectral-norm-constraint")
    except PackageNotFoundError:  # run from its source
        return "not installed"


def _told(
    layers: Sequence[Layer],
    policies: Collection[LayerPolicy],
    settings: Mapping[str, object],
    gradients: GradientSums | None,
) -> dict[Members, dict[str, str]]:
    """Return for each group of processes what must be equal in all of them."""
    of: dict[Members, list[tuple[Layer, LayerPolicy]]] = {}
    for layer, policy in zip(layers, policies, strict=True):
        matrix = layer.shard()
        of.setdefault(members(matrix.group), []).append((layer, policy))
    found: dict[Members, dict[str, str]] = {}
    for group, inside in of.items():
        table = [(x.name, x.shape, str(x.weight().dtype), x.shard().axis) for x, _ in inside]
        rules = [(x.name, p.factor, p.unit, p.action) for x, p in inside]
        found[group] = {
            "version of the callback": _version(),
            "layers": json.dumps(table),
            "policy": json.dumps(rules),
            "settings": json.dumps(settings, default=str, sort_keys=True),
        }
    for group, text in (gradients.told if gradients is not None else {}).items():
        found.setdefault(group, {"version of the callback": _version()})["parameters"] = text
    return found
