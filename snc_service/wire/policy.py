"""The policy: a threshold and an action for each layer pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, get_args

from snc_service.wire.checks import WireError, printable, shown

Action: TypeAlias = Literal["observe", "rescale", "cap", "normalize", "stop"]
ACTIONS: Final[tuple[str, ...]] = get_args(Action)
MAX_ENTRIES = 1_024

_RELATIVE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*x\s*(init|rms)\s*")
Unit: TypeAlias = Literal["absolute", "init", "rms", "auto"]
AUTO: Final = "auto"


@dataclass(frozen=True)
class Threshold:
    """An upper limit for sigma: ``factor`` times a unit.

    Units: ``absolute`` (1), ``init`` (the layer's sigma at its first measurement), ``rms``
    (sqrt(fan_out / fan_in), the norm that preserves the root mean square of activations) and
    ``auto`` (the multiple of ``init`` that the client has for the layer's kind; factor 1).
    """

    factor: float
    unit: Unit = "absolute"

    @classmethod
    def parse(cls, value: object, field: str = "threshold") -> Threshold:
        """Read a number, ``"3x init"``, ``"3x rms"`` or ``"auto"``; raises `WireError`."""
        match = _RELATIVE.fullmatch(value) if isinstance(value, str) else None
        if match:
            factor, unit = float(match[1]), match[2]
        elif isinstance(value, str) and value.strip() == AUTO:
            factor, unit = 1.0, AUTO
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                factor, unit = float(value), "absolute"
            except OverflowError:
                factor, unit = math.inf, "absolute"
        else:
            factor, unit = math.nan, ""
        # The device compares in float32.
        if not 1e-30 <= factor <= 1e30:
            raise WireError(
                field,
                'must be a number > 0 (1e-30 to 1e30), "<number>x init", "<number>x rms" or '
                f'"auto", got {shown(value)}',
            )
        return cls(factor, unit)  # type: ignore[arg-type] # the pattern admits only these units

    def __str__(self) -> str:
        if self.unit == AUTO:
            return AUTO
        return f"{self.factor:g}" if self.unit == "absolute" else f"{self.factor:g}x {self.unit}"


@dataclass(frozen=True)
class PolicyEntry:
    """One policy entry: a threshold and an action for layers whose name matches a glob."""

    pattern: str
    threshold: float | str | None
    action: Action = "rescale"

    def __post_init__(self) -> None:
        printable(self.pattern, "pattern", max_bytes=256)
        if self.threshold is not None:
            Threshold.parse(self.threshold, f"threshold of {shown(self.pattern)}")
        if self.action not in ACTIONS:
            raise WireError(
                f"action of {shown(self.pattern)}",
                f"must be one of {', '.join(ACTIONS)}, got {shown(self.action)}",
            )

    @property
    def limit(self) -> Threshold | None:
        """Return the parsed threshold, None where the entry only observes."""
        return None if self.threshold is None else Threshold.parse(self.threshold)

    def matches(self, layer: str) -> bool:
        """Return whether the pattern matches ``layer``.

        A slice such as ``attn.in_proj_weight[q]`` matches by its own name or by the name of the
        whole weight. Brackets in a *pattern* are glob sets: write ``[[]q]`` for ``[q]``.
        """
        matched = self._compiled.match
        return matched(layer) is not None or matched(layer.split("[", 1)[0]) is not None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        # The cache of `fnmatch` keeps 32,768 patterns for ever: 100 MB for whoever sends them.
        return re.compile(translate(self.pattern))


@dataclass(frozen=True)
class Policy:
    """Ordered entries; the first match decides, and a layer without a match is only observed."""

    entries: tuple[PolicyEntry, ...] = ()

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_ENTRIES:
            raise WireError("entries", f"must be at most {MAX_ENTRIES}, got {len(self.entries)}")

    @classmethod
    def parse(cls, value: object) -> Policy:
        """Read ``{"entries": [{"pattern", "threshold", "action"?}]}``. Raises `WireError`."""
        entries = value.get("entries") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(entries, list):
            raise WireError("policy", f'must be {{"entries": [...]}}, got {shown(value)}')
        if set(value) != {"entries"}:
            raise WireError("policy", f"must have no other key than entries, got {sorted(value)}")
        return cls(tuple(_entry(entry) for entry in entries))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "entries": [
                {"pattern": e.pattern, "threshold": e.threshold, "action": e.action}
                for e in self.entries
            ]
        }

    def entry(self, layer: str) -> PolicyEntry | None:
        """Return the first entry that matches ``layer``."""
        return next((entry for entry in self.entries if entry.matches(layer)), None)


def _entry(value: object) -> PolicyEntry:
    if not isinstance(value, Mapping) or not {"pattern", "threshold"} <= set(value):
        raise WireError(
            "entries", f"must hold objects with pattern and threshold, got {shown(value)}"
        )
    unknown = set(value) - {"pattern", "threshold", "action"}
    if unknown:
        raise WireError("entries", f"must not have the keys {shown(sorted(map(str, unknown)))}")
    return PolicyEntry(value["pattern"], value["threshold"], value.get("action", "rescale"))
