"""Limits from healthy runs: the largest values of layers and rules, times a margin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from snc_service.detect.memory import Memory
from snc_service.detect.rules import Judgement, judge
from snc_service.detect.trends import Doubles
from snc_service.store.types import RunRows
from snc_service.wire import Action, Policy, PolicyEntry, RuleSettings

# Their limits are not raised: they count what must not happen at all.
COUNTING: Final = ("nonfinite", "breach", "guard", "guard_rollback")
ALIKE: Final = 2.0  # most by which the largest sigmas of one pattern may differ to share it
LEAST_SIGMA: Final = 1e-6  # a layer that stayed at zero gets no threshold
_NUMBER = re.compile(r"(?<![^.\[])[0-9]+(?![^.\]])")  # a whole component of a name
_GLOB = re.compile(r"([*?\[])")


@dataclass
class Observed:
    """The largest sigma of each layer, and the largest limit at which each rule would fire."""

    sigma: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    num_rows: int = 0
    critical: dict[str, str] = field(default_factory=dict)  # run -> its critical event

    def add(self, stream: Iterable[RunRows]) -> None:
        """Add all rows of one run, judged by the rules in force for it."""
        memory = Memory()
        tails: dict[str, Doubles] = {}
        for rows in stream:
            verdict = judge(memory, rows)
            self.num_rows += len(rows.batch.steps)
            self._sigmas(rows)
            self._values(rows, verdict, tails)
            for event in verdict.events:
                if event.severity == "critical":
                    self.critical.setdefault(rows.run, f"{event.rule} at step {event.step}")

    def _sigmas(self, rows: RunRows) -> None:
        sigma = rows.batch.metric("sigma")
        if sigma is None:
            return
        largest = np.where(np.isfinite(sigma), sigma, 0.0).max(axis=0)
        for layer, value in zip(rows.layers, largest.tolist(), strict=True):
            self.sigma[layer] = max(self.sigma.get(layer, 0.0), value)

    def _values(self, rows: RunRows, verdict: Judgement, tails: dict[str, Doubles]) -> None:
        for name, finding in verdict.findings.items():
            setting = rows.settings[name]
            armed = finding.judged & (verdict.trained >= setting.armed)
            there = np.where(np.isfinite(finding.values), finding.values, -np.inf)[armed]
            values = np.concatenate((tails.get(name, np.empty(0)), there))
            tails[name] = values[len(values) - setting.for_rows + 1 :][: setting.for_rows - 1]
            if len(values) >= setting.for_rows:
                windows = np.lib.stride_tricks.sliding_window_view(values, setting.for_rows)
                largest = float(windows.min(axis=1).max())
                if largest > 0:
                    self.values[name] = max(self.values.get(name, 0.0), largest)


def policy_from(observed: Observed, margin: float, action: Action) -> Policy:
    """Return thresholds of ``margin`` times the largest sigma, rounded up to two digits.

    Numbers in names become ``*`` if the layers of the pattern are alike. The first entry that
    matches a layer is never below ``margin`` times that layer's own sigma.
    """
    groups: dict[str, dict[str, float]] = {}
    for layer, sigma in observed.sigma.items():
        if sigma > LEAST_SIGMA:
            groups.setdefault(pattern_of(layer), {})[layer] = sigma
    shared: dict[str, float] = {}
    own: dict[str, float] = {}
    for pattern, layers in groups.items():
        alike = max(layers.values()) <= ALIKE * min(layers.values())
        if len(layers) > 1 and alike and not _covers_others(pattern, layers, observed.sigma):
            shared[pattern] = max(layers.values())
        else:
            own |= {literal(layer): sigma for layer, sigma in layers.items()}
    # A shared pattern matches only its own layers, so it may come first. A name also matches its
    # slices, so longer names come before shorter ones.
    entries = [*shared.items(), *sorted(own.items(), key=lambda item: -len(item[0]))]
    return Policy(
        tuple(PolicyEntry(pattern, round_up(margin * sigma), action) for pattern, sigma in entries)
    )


def starting_with(start: Policy, observed: Observed, suggested: Policy) -> Policy:
    """Return the entries of ``start`` for observed layers, then the suggestions for the others.

    An entry is kept if it decides for an observed layer, because a callback refuses one that
    matches nothing. A suggestion is kept if some of its layers have no entry in ``start``.
    """
    chosen = {layer: start.entry(layer) for layer in observed.sigma}
    kept = [entry for entry in start.entries if entry in chosen.values()]
    open_ = [layer for layer, entry in chosen.items() if entry is None]
    needed = [suggested.entry(layer) for layer in open_]
    return Policy((*kept, *(entry for entry in suggested.entries if entry in needed)))


def rules_from(observed: Observed, margin: float) -> RuleSettings:
    """Return the shipped rules with limits raised to ``margin`` times the observed values.

    Limits are never lowered: healthy runs do not show the values of a faulty one.
    """
    shipped = RuleSettings()
    raised = {}
    for name, value in observed.values.items():
        limit = round_up(margin * value)
        if name not in COUNTING and limit > shipped[name].limit:
            raised[name] = replace(shipped[name], limit=limit)
    return RuleSettings(MappingProxyType({**shipped.rules, **raised}))


def pattern_of(layer: str) -> str:
    """Return the name as a glob with ``*`` for its numbers, so it matches all blocks of a model."""
    return "*".join(literal(part) for part in _NUMBER.split(layer))


def literal(name: str) -> str:
    """Return a glob that matches only this name."""
    return _GLOB.sub(r"[\1]", name)


def round_up(value: float) -> float:
    """Return the smallest two-digit number that is not below ``value`` > 0."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.6g}")


def _covers_others(pattern: str, layers: Iterable[str], every: Iterable[str]) -> bool:
    entry, own = PolicyEntry(pattern, None), set(layers)
    return any(entry.matches(name) for name in every if name not in own)


def as_toml(settings: RuleSettings, comments: Sequence[str]) -> str:
    """Return the differences from the shipped rules as TOML, after comments."""
    lines = [f"# {comment}" for comment in comments]
    for name, changed in settings.changes()["rules"].items():
        lines += ["", f"[rules.{name}]", *(f"{key} = {value}" for key, value in changed.items())]
    return "\n".join(lines) + "\n"
