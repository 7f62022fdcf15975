"""Policies: the user's thresholds and actions, checked and resolved to layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from snc_service.wire import ACTIONS, Action, Policy, PolicyEntry, Threshold, Unit

Limit: TypeAlias = float | str | None
# "auto": how many times its first sigma a layer may reach, by kind: 1.5 times what 99 of 100 layers
# of healthy trainings grew by, rounded up. docs/layers.md has the figures, `bench/instability` the
# trainings.
AUTO_MULTIPLES: Final[Mapping[str, float]] = MappingProxyType(
    {"conv": 4.0, "linear": 7.0, "recurrent": 7.0, "embedding": 8.0}
)
OTHER_MULTIPLE: Final = max(AUTO_MULTIPLES.values())  # of kinds that were not measured
HOLDING: Final = ("rescale", "cap", "normalize")  # the actions that write a weight


class Named(Protocol):
    """The properties of a layer that a policy uses."""

    @property
    def names(self) -> Sequence[str]:
        """Every name of the weight: more than one where weights are tied."""

    @property
    def kind(self) -> str:
        """What it is, such as ``linear`` or ``recurrent``."""

    @property
    def linear(self) -> bool:
        """Whether it is known to be a linear map: only then an entry for all layers applies."""

    @property
    def writable(self) -> bool:
        """Whether enforcement may write it."""

    @property
    def cappable(self) -> bool:
        """Whether its singular values can be set one by one."""


@dataclass(frozen=True)
class LayerPolicy:
    """Threshold and action of one layer: the threshold is ``factor`` (inf: none) times a unit."""

    factor: float = math.inf
    unit: Unit = "absolute"
    action: Action = "observe"


@dataclass(frozen=True)
class Resolved:
    """A policy resolved to layers, in layer order."""

    layers: tuple[LayerPolicy, ...]
    unmatched: tuple[str, ...]
    """Patterns that match no layer: an error in a constructor, a warning in a service's policy."""
    uncapped: tuple[int, ...] = ()
    """Places of layers that are rescaled where the policy says ``cap``."""

    def require_matched(self, also: Sequence[str] = ()) -> None:
        """Raise ValueError naming the first pattern that matches neither a layer nor ``also``."""
        for pattern in self.unmatched:
            if any(fnmatchcase(name, pattern) for name in also):
                continue
            cure = " (write [[] for a literal [)" if "[" in pattern else ""
            raise ValueError(
                f"policy entry {pattern!r} must match a measured layer, it matches none"
                f"{cure}: str(callback.layers) lists the names"
            )


def make_policy(
    threshold: Limit | Mapping[str, Limit] = None,
    action: str = "rescale",
    policy: Policy | Mapping[str, Any] | None = None,
) -> Policy:
    """Return the policy that a constructor's arguments describe; without any, observe everything.

    ``threshold`` is a number, ``"3x init"``, ``"3x rms"``, ``"auto"`` or a mapping of globs to
    these or None (observe), in the order in which they are tried. ``policy`` is one already made,
    or its JSON form. Raises ValueError naming the entry that is wrong.
    """
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
    if policy is not None:
        if threshold is not None:
            raise ValueError("threshold and policy must not both be given: put it into the policy")
        return policy if isinstance(policy, Policy) else Policy.parse(policy)
    if threshold is None:
        return Policy()
    if isinstance(threshold, Mapping):
        if not threshold:
            raise ValueError("threshold must map at least one pattern, got an empty mapping")
        return Policy(tuple(_entry(*item, action) for item in threshold.items()))
    Threshold.parse(_number(threshold))  # here its error says "threshold", not "threshold of '*'"
    return Policy((_entry("*", threshold, action),))


def resolve(policy: Policy, layers: Sequence[Named]) -> Resolved:
    """Resolve a policy to layers: the first entry that matches any name of a layer applies.

    An entry whose pattern is only ``*`` applies to known linear maps and to no other layer. A layer
    without an entry or without a threshold is observed. So is one that must not be written,
    where the action would write it: its breaches are still reported. Where a cap is not
    possible, the layer is rescaled.
    """
    unmatched = tuple(entry.pattern for entry in policy.entries if not _speaks(entry, layers))
    entries = [_entry_of(policy, layer) for layer in layers]
    found = tuple(map(_layer_policy, entries, layers))
    places = (
        i
        for i, entry in enumerate(entries)
        if entry is not None and entry.action == "cap" and found[i].action == "rescale"
    )
    return Resolved(found, unmatched, tuple(places))


def _entry_of(policy: Policy, layer: Named) -> PolicyEntry | None:
    for entry in policy.entries:
        if any(map(entry.matches, layer.names)) and (layer.linear or entry.pattern.strip("*")):
            return entry
    return None


def _layer_policy(entry: PolicyEntry | None, layer: Named) -> LayerPolicy:
    limit = None if entry is None else entry.limit
    if entry is None or limit is None:
        return LayerPolicy()
    action = _possible(entry.action, layer)
    if limit.unit == "auto":
        return LayerPolicy(AUTO_MULTIPLES.get(layer.kind, OTHER_MULTIPLE), "init", action)
    return LayerPolicy(limit.factor, limit.unit, action)


def _possible(action: Action, layer: Named) -> Action:
    if action in HOLDING and not layer.writable:
        return "observe"
    return "rescale" if action == "cap" and not layer.cappable else action


def _speaks(entry: PolicyEntry, layers: Sequence[Named]) -> bool:
    return any(entry.matches(name) for layer in layers for name in layer.names)


def _entry(pattern: str, threshold: Limit, action: str) -> PolicyEntry:
    return PolicyEntry(pattern, _number(threshold), action)  # type: ignore[arg-type] # checked


def _number(value: Any) -> Any:
    """Return numpy's numbers as Python's: the wire accepts no others."""
    return value.item() if isinstance(value, np.integer | np.floating) else value
