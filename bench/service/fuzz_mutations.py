"""JSON values with some of their parts replaced, taken out or doubled."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**400, 1e308, 1e-320, 0.1,
    "", "a", "\0", "\u2028", "\ud800", "x" * 300, "*" * 256, "[" * 200, "=cmd()", "NaN", "1e999",
    "3x init", "-3x rms", "10.0.0.0/8", "http://[::1", "http://a@b:c/", "2100-01-01T00:00:00Z",
    [], {}, [[]], [{}], {"": ""}, [None] * 70, {"a": {"b": {"c": []}}}, ["a"] * 70,
)  # fmt: skip


def changed(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with some of its parts replaced, taken out or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randrange(1, 4)):
        places = list(_places(value))
        if not places:
            return rng.choice(NASTY)
        owner, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[str(rng.choice(NASTY))[:300]] = owner[key]
        elif kind == 1:
            owner.insert(key, owner[key])
        elif kind == 2 and isinstance(owner[key], int | float):
            owner[key] = owner[key] + rng.choice((1, -1, 2**32))
        else:
            owner[key] = copy.deepcopy(rng.choice(NASTY))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
