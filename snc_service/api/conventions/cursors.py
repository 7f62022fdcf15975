"""Cursors: the position in a list, opaque to the client and checked on return."""

from __future__ import annotations

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

from snc_service.problems import Problem


def dump(key: Sequence[Any] | None) -> str | None:
    """Return the cursor of a key, None at the end of a list."""
    if key is None:
        return None
    text = json.dumps(list(key), separators=(",", ":"), allow_nan=False)
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def load(cursor: str | None, *types: type) -> tuple[Any, ...] | None:
    """Return the key in a cursor of this list. Raises `Problem` (422) for any other text.

    ``types`` are those of the key: a forged key must not reach a statement with other types.
    """
    if cursor is None:
        return None
    try:
        key = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or len(key) != len(types) or not all(map(_fits, key, types)):
        raise Problem(
            "invalid", "cursor must be the `next` of an earlier page of this list", field="cursor"
        )
    return tuple(key)


def _fits(value: object, wanted: type) -> bool:
    if isinstance(value, bool):
        return False
    if wanted is int:
        return isinstance(value, int) and abs(value) < 2**63
    if wanted is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, wanted)
