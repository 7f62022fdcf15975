"""Rule settings: limit, row counts, severity and on/off switch of each detection rule.

The form is a table of rules in TOML or JSON. Omitted keys keep their shipped values::

    [rules.sigma_growth]
    limit = 0.5
    for_rows = 3
    severity = "critical"

    [rules.lr_jump]
    on = false

`RuleSettings.parse` reads the form. `advance(state, rows, settings)` of `snc_service.detect.rules`
applies it in live ingest, replay and backtest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

from snc_service.wire.checks import WireError, shown, switch, whole

Severity: TypeAlias = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[str, ...]] = get_args(Severity)
MAX_FOR_ROWS = 1_000
MAX_ARMED = 1_000_000
MAX_LIMIT = 1e9


@dataclass(frozen=True)
class RuleSetting:
    """The setting of one rule: it fires after ``for_rows`` consecutive rows above ``limit``.

    Rules that compare with the past become active at training row ``armed``. Both counts assume
    rows that are one step apart. A rule that is not ``on`` is not evaluated.
    """

    limit: float
    for_rows: int = 1
    armed: int = 0
    severity: Severity = "warning"
    on: bool = True


# Defaults and their reasons: docs/rules.md. Each limit has the unit of its rule's value.
SHIPPED: Final[Mapping[str, RuleSetting]] = MappingProxyType(
    {
        "nonfinite": RuleSetting(limit=0.0, severity="critical"),
        "breach": RuleSetting(limit=0.0),
        "breach_far": RuleSetting(limit=10.0, for_rows=3, severity="critical"),
        "guard": RuleSetting(limit=0.0),
        "guard_rollback": RuleSetting(limit=0.0, severity="critical"),
        "lr_jump": RuleSetting(limit=5.0, armed=4),
        "update_ratio": RuleSetting(limit=0.06, for_rows=2, armed=30),
        "sigma_jump": RuleSetting(limit=0.10, armed=10, severity="critical"),
        "sigma_growth": RuleSetting(limit=0.75, for_rows=2, armed=20),
        "sigma_vs_init": RuleSetting(limit=1.7, for_rows=3, armed=20),
        "coherent_growth": RuleSetting(limit=0.3, for_rows=3, armed=150),
        "grad_spike": RuleSetting(limit=8.0, armed=20),
        "grad_vanish": RuleSetting(limit=2.3, for_rows=3, armed=20),
        "loss_divergence": RuleSetting(limit=3.0, for_rows=3, armed=20, severity="critical"),
        "loss_trend": RuleSetting(limit=0.4, for_rows=3, armed=20),
        "loss_regain": RuleSetting(limit=0.9, for_rows=3, armed=60),
        "shrink": RuleSetting(limit=0.3, for_rows=3, armed=60),
        "gain_growth": RuleSetting(limit=0.45, for_rows=3, armed=60),
        "unchanged": RuleSetting(limit=20.0, armed=20),
        "skipped_steps": RuleSetting(limit=0.10, for_rows=10, armed=100),
    }
)
_KEYS: Final = tuple(each.name for each in fields(RuleSetting))


@dataclass(frozen=True)
class RuleSettings:
    """The complete settings of all rules by name, with shipped values as the default."""

    rules: Mapping[str, RuleSetting] = field(default_factory=lambda: SHIPPED)

    @classmethod
    def parse(cls, value: object) -> RuleSettings:
        """Read ``{"rules": {name: {"limit"?, "for_rows"?, "armed"?, "severity"?, "on"?}}}``.

        Omitted keys keep their shipped values. Raises `WireError` for an unknown key or rule, a
        number out of bounds or a value of another type; its ``field`` is the key, such as
        ``rules.sigma_jump.limit``.
        """
        document = _table(value, "rules document")
        _known(document, "", ("rules",))
        given = _table(document.get("rules", {}), "rules")
        _known(given, "rules.", SHIPPED)
        changed = {name: _setting(name, each) for name, each in given.items()}
        return cls(MappingProxyType({**SHIPPED, **changed}))

    def as_dict(self) -> dict[str, Any]:
        """Return the complete JSON form; parsed, it gives the same settings."""
        return {"rules": {name: asdict(setting) for name, setting in self.rules.items()}}

    @cached_property
    def text(self) -> str:
        """Return `as_dict` as JSON, which checkpoints hold."""
        return json.dumps(self.as_dict(), separators=(",", ":"))

    def changes(self) -> dict[str, Any]:
        """Return the JSON form of the settings that differ from the shipped ones."""
        changed = {}
        for name, setting in self.rules.items():
            before = asdict(SHIPPED[name])
            differs = {k: v for k, v in asdict(setting).items() if v != before[k]}
            if differs:
                changed[name] = differs
        return {"rules": changed}

    def __getitem__(self, rule: str) -> RuleSetting:
        return self.rules[rule]

    @cached_property
    def switched_on(self) -> frozenset[str]:
        """Return the rules that are evaluated."""
        return frozenset(name for name, setting in self.rules.items() if setting.on)

    @cached_property
    def limits(self) -> tuple[float, ...]:
        """Return the limit of each rule in their order, infinite for one that is not evaluated."""
        rules = (self.rules[name] for name in SHIPPED)
        return tuple(setting.limit if setting.on else math.inf for setting in rules)


def _setting(name: str, value: object) -> RuleSetting:
    where = f"rules.{name}"
    given = _table(value, where)
    _known(given, f"{where}.", _KEYS)
    checked = {key: _CHECKS[key](each, f"{where}.{key}") for key, each in given.items()}
    return replace(SHIPPED[name], **checked)


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(where, f"must be an object (JSON) or a table (TOML), got {shown(value)}")
    return value


def _known(given: Mapping[str, Any], where: str, known: Collection[str]) -> None:
    """Refuse an unknown key, so that a typo is not ignored."""
    for key in given:
        if key not in known:
            raise WireError(f"{where}{key}"[:120], f"is not known here: use {', '.join(known)}")


def _limit(value: object, where: str) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= MAX_LIMIT else math.inf
    if not 0 <= number <= MAX_LIMIT:
        raise WireError(where, f"must be a number from 0 to {MAX_LIMIT:g}, got {shown(value)}")
    return number


def _severity(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in SEVERITIES:
        raise WireError(where, f"must be one of {', '.join(SEVERITIES)}, got {shown(value)}")
    return value


_CHECKS: Final[Mapping[str, Any]] = {
    "limit": _limit,
    "for_rows": lambda value, where: whole(value, where, least=1, most=MAX_FOR_ROWS),
    "armed": lambda value, where: whole(value, where, most=MAX_ARMED),
    "severity": _severity,
    "on": switch,
}
