"""What is looked for among the runs: conditions, an order and a page of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

CONFIG: Final = "config."  # before the path of a config value, such as config.optimizer.lr

TextField: TypeAlias = Literal[
    "any", "run", "name", "project", "tag", "state", "layer", "worst", "note", "ended", "incident"
]
NumberField: TypeAlias = Literal[
    "step", "layers", "loss", "ratio", "breaches", "rescales", "nonfinite", "dropped", "vetoes",
    "overhead", "duration", "incidents", "attempt",
]  # fmt: skip
TEXT_FIELDS: Final[tuple[str, ...]] = get_args(TextField)
NUMBER_FIELDS: Final[tuple[str, ...]] = get_args(NumberField)
# `attention`: what went wrong and was not acknowledged, then the newest.
ORDERS: Final[tuple[str, ...]] = (
    "attention", "created", "updated", "name", "project", "state", *NUMBER_FIELDS,
)  # fmt: skip
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
Archived: TypeAlias = Literal["no", "yes", "any"]


@dataclass(frozen=True)
class TextCondition:
    """A field, or a config value, matches a pattern of letters, ``*`` and ``?``.

    A pattern with a wildcard ignores the case of ASCII letters; one without is matched exactly.
    """

    field: str  # one of `TEXT_FIELDS`, or `CONFIG` and a path
    pattern: str
    negated: bool = False


@dataclass(frozen=True)
class NumberCondition:
    """A field, or a config value, compared with a finite number."""

    field: str  # one of `NUMBER_FIELDS`, or `CONFIG` and a path
    operator: Operator
    value: float
    negated: bool = False


Condition: TypeAlias = TextCondition | NumberCondition


@dataclass(frozen=True)
class RunSearch:
    """Runs for which every condition holds. ``project`` is the limit that a token sets."""

    conditions: tuple[Condition, ...] = ()
    project: str | None = None
    archived: Archived = "any"
    order: str = "created"  # one of `ORDERS`, or `CONFIG` and a path
    descending: bool = True
    limit: int = 100
    after: tuple[Any, ...] | None = None  # the key of the last run of the page before


@dataclass(frozen=True)
class RunSummary:
    """What a search finds, in numbers, and what all runs offer to search for."""

    states: dict[str, int]
    projects: tuple[str, ...]
    tags: tuple[str, ...]
    config: tuple[str, ...]  # paths, such as optimizer.lr


@dataclass(frozen=True)
class RunChange:
    """What a user changes about a run; None leaves it."""

    name: str | None = None
    tags: tuple[str, ...] | None = None
    note: str | None = None
    archived: bool | None = None
