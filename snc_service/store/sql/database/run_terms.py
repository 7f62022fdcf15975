"""Terms of a run: its tags and its config values as rows that an index finds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

MOST_TERMS: Final = 512  # of one run; a config beyond it is stored, and not found by its values
DEEPEST: Final = 8
MOST_CHARACTERS: Final = 256  # of a value or a name, which indexes hold
TAG: Final = "tag"

SINCE: Final = 6  # the version of the tables that have them
INSERT: Final = "insert into run_term (run_id, name, value, number) values (?, ?, ?, ?)"
# What earlier stores hold.
BEFORE: Final = "select run_id, config, tags from run_config order by run_id"

Term = tuple[str, str, float | None]


def terms(config: Mapping[str, Any], tags: Sequence[str]) -> list[Term]:
    """Return (name, value, number or None) of each tag and config value, each once.

    Nested names are joined by dots. A list is a value for each of its plain members.
    """
    found: dict[tuple[str, str], float | None] = {}
    for tag in tags:
        found.setdefault((TAG, tag[:MOST_CHARACTERS]), None)
    for path, value in _leaves("config", config, DEEPEST):
        if len(found) >= MOST_TERMS:
            break
        found.setdefault((path[:MOST_CHARACTERS], _text(value)), _number(value))
    return [(name, value, number) for (name, value), number in found.items()]


def rows(runs: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Return the rows of the terms of runs, given as rows of `BEFORE`."""
    for run_id, config, tags in runs:
        for term in terms(json.loads(config), json.loads(tags)):
            yield (run_id, *term)


def _leaves(path: str, value: object, deeper: int) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and deeper:
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}", inner, deeper - 1)
    elif isinstance(value, list):
        for inner in value:
            if not isinstance(inner, Mapping | list):
                yield path, inner
    elif not isinstance(value, Mapping):
        yield path, value


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\0", "\ufffd")[:MOST_CHARACTERS]  # PostgreSQL stores no zero


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond float64
        return None
    return number if math.isfinite(number) else None
