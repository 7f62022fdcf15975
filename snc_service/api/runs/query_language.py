"""The query language of the list of runs: text in, conditions out.

A query is words and conditions with spaces between them; all of them must hold:

    project:gpt tag:baseline state:failed config.lr=0.01 layer:*qkv* loss<2 -name:*debug* head

``:`` matches a pattern with ``*`` and ``?``; ``= != < <= > >=`` compare numbers; ``-`` before a
condition negates it; double quotes keep spaces together. A plain word is looked for in id, name,
project, state, tags and worst layer. Reading takes one pass over a bounded text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from snc_service.store.types.run_search import (
    CONFIG,
    NUMBER_FIELDS,
    TEXT_FIELDS,
    Archived,
    Condition,
    NumberCondition,
    Operator,
    TextCondition,
)
from snc_service.wire.checks import shown

MOST_CHARACTERS: Final = 1_000
MOST_CONDITIONS: Final = 20
MOST_WILDCARDS: Final = 8  # of one pattern: what a database may try grows with each
MOST_PATTERN: Final = 256
VALUES: Final = {
    "state": ("active", "silent", "finished", "failed"),
    "ended": ("nonfinite", "breach"),
    "incident": ("any", "critical", "warning", "info"),
}
ARCHIVED: Final = ("no", "yes", "any")

# No two parts can match the same letter in a row: the time to match grows with the length only.
_CONDITION = re.compile(r"(config\.[^:=!<>\"]{1,200}|[a-z]{1,20})(:|!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?")
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_NAMES: Final = (*(name for name in TEXT_FIELDS if name != "any"), *NUMBER_FIELDS, "archived")


@dataclass(frozen=True)
class RunWords:
    """A query that was read. Without a word about archived runs, they are left out."""

    conditions: tuple[Condition, ...]
    archived: Archived = "no"


@dataclass(frozen=True)
class _QueryPart:
    text: str  # without the quotes
    is_quoted: bool  # as a whole


def read(text: str) -> RunWords:
    """Read a query. Raises `ValueError` with one sentence that says what is wrong with which part.

    Every text up to `MOST_CHARACTERS` is either read or refused so, in time linear in its length.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"must be at most {MOST_CHARACTERS} letters, got {len(text)}")
    if not is_storable(text):
        raise ValueError("must hold no control characters")
    conditions: list[Condition] = []
    archived: Archived = "no"
    for count, part in enumerate(_parts(text)):
        if count >= MOST_CONDITIONS:
            raise ValueError(f"must hold at most {MOST_CONDITIONS} conditions")
        negated = part.text.startswith("-") and len(part.text) > 1 and not part.is_quoted
        body = part.text[1:] if negated else part.text
        match = None if part.is_quoted else _CONDITION.fullmatch(body)
        if match is None:
            conditions.append(_word(body, negated))
        elif match[1] == "archived":
            archived = _archived(match, negated)
        else:
            conditions.append(_condition(match[1], match[2], match[3], negated))
    return RunWords(tuple(conditions), archived)


def is_storable(text: str) -> bool:
    """Return whether a database can be asked for ``text``: no control character, no surrogate."""
    return all(c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff" for c in text)


def _parts(text: str) -> Iterator[_QueryPart]:
    """Split at spaces outside double quotes. A missing quote at the end is added."""
    letters: list[str] = []
    inside = begun = plain = False
    for letter in text:
        if letter == '"':
            inside, begun = not inside, True
        elif letter == " " and not inside:
            if begun:
                yield _QueryPart("".join(letters), not plain)
            letters, begun, plain = [], False, False
        else:
            letters.append(letter)
            begun = True
            plain = plain or not inside
    if begun:
        yield _QueryPart("".join(letters), not plain)


def _word(word: str, negated: bool) -> Condition:
    pattern = _pattern(word, word).strip("*")
    return TextCondition("any", f"*{pattern}*" if pattern else "*", negated)


def _archived(match: re.Match[str], negated: bool) -> Archived:
    if negated or match[2] not in (":", "=") or match[3] not in ARCHIVED:
        raise ValueError(f"must say archived: one of {', '.join(ARCHIVED)}, got {shown(match[0])}")
    return cast(Archived, match[3])


def _condition(field: str, operator: str, value: str, negated: bool) -> Condition:
    if not value:
        raise ValueError(f"must have a value after {shown(field)}")
    if field not in _NAMES and not field.startswith(CONFIG):
        raise ValueError(
            f"must ask for a field among {', '.join(_NAMES)} and config.NAME, got {shown(field)}; "
            "quotes make it a word"
        )
    is_number = field in NUMBER_FIELDS
    number = _number(value, is_duration=field == "duration")
    if is_number or (field.startswith(CONFIG) and operator != ":" and number is not None):
        if number is None:
            raise ValueError(f"must compare {field} with a finite number, got {shown(value)}")
        same = "=" if operator == ":" else operator
        return NumberCondition(field, cast(Operator, same), number, negated)
    if operator not in (":", "=", "!="):
        compared = "a number" if field.startswith(CONFIG) else "a pattern, as in field:pattern"
        raise ValueError(f"must compare {field} with {compared}, got {shown(value)}")
    known = VALUES.get(field)
    if known is not None and value not in known and not set(value) & {"*", "?"}:
        raise ValueError(f"must say {field}: one of {', '.join(known)}, got {shown(value)}")
    return TextCondition(field, _pattern(value, value), negated != (operator == "!="))


def _pattern(pattern: str, given: str) -> str:
    if len(pattern) > MOST_PATTERN + 2:
        raise ValueError(f"must hold values of at most {MOST_PATTERN} letters, got {shown(given)}")
    # Stars in a row are one star.
    pattern = re.sub(r"\*+", "*", pattern)
    if pattern.count("*") > MOST_WILDCARDS:
        raise ValueError(f"must hold at most {MOST_WILDCARDS} stars a pattern, got {shown(given)}")
    return pattern


def _number(text: str, *, is_duration: bool) -> float | None:
    unit = _UNITS.get(text[-1:]) if is_duration else None
    digits = text[:-1] if unit is not None else text
    if _NUMBER.fullmatch(digits) is None:
        return None
    value = float(digits) * (unit or 1.0)
    return value if math.isfinite(value) else None
