"""Checks that all wire forms share: the error type, the limits and the form of names."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Final

MAX_HEADER_BYTES = 65_536
MAX_STEPS = 1_024  # per batch
MAX_LAYERS = 65_536  # per layer table
MAX_COLUMNS = 32  # metrics + scalars of one batch
MAX_WHOLE = 2**53 - 1  # the largest integer that JSON readers keep exact
MAX_STEP = MAX_WHOLE
MAX_LAYER_NAME_BYTES = 256
MAX_WRITER_BYTES = 128

# C0, DEL and C1 would break logs, terminals and line-based formats.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# Also the shape of the names of projects, tokens and receivers of alerts.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class WireError(ValueError):
    """An invalid wire value: ``field`` locates it, ``message`` states what to change."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


def shown(value: object, limit: int = 80) -> str:
    """Return ``repr(value)``, shortened so that hostile input cannot fill a log or a response."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _refuse_constant(text: str) -> object:
    raise ValueError(f"bare {text}")


# Made once: `json.loads` makes another for every call with options.
_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def json_object(data: bytes, field: str) -> dict[str, Any]:
    """Parse a JSON object; refuse NaN and Infinity literals, unbounded nesting and bad UTF-8."""
    try:
        value = _JSON.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(
            field, f"must be a JSON object in UTF-8: {shown(str(error), 120)}"
        ) from None
    if not isinstance(value, dict):
        raise WireError(field, f"must be a JSON object, got {shown(value)}")
    return value


def whole(value: object, field: str, *, least: int = 0, most: int = MAX_WHOLE) -> int:
    """Return ``value`` if it is an integer (no bool, no float) within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WireError(field, f"must be an integer from {least} to {most}, got {shown(value)}")
    return value


def switch(value: object, where: str) -> bool:
    """Return ``value`` if it is true or false."""
    if not isinstance(value, bool):
        raise WireError(where, f"must be true or false, got {shown(value)}")
    return value


def printable(value: object, field: str, *, max_bytes: int) -> str:
    """Return ``value`` if it is a string of 1 to ``max_bytes`` bytes without control characters."""
    if not isinstance(value, str) or not value:
        raise WireError(field, f"must be a non-empty string, got {shown(value)}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise WireError(field, f"must be valid Unicode, got {shown(value)}") from None
    if size > max_bytes:
        raise WireError(field, f"must be at most {max_bytes} bytes, got {size}")
    if _CONTROL.search(value):
        raise WireError(field, f"must not contain control characters, got {shown(value)}")
    return value


def names(value: object, field: str) -> tuple[str, ...]:
    """Return distinct metric or scalar names as a tuple."""
    if not isinstance(value, list | tuple):
        raise WireError(field, f"must be a list of names, got {shown(value)}")
    given = tuple(value)
    if len(given) <= MAX_COLUMNS and all(type(name) is str for name in given):
        return _names_of_a_batch(given, field)
    return _names(given, field)


def _names(given: tuple[object, ...], field: str) -> tuple[str, ...]:
    found = tuple(name for name in given if isinstance(name, str) and METRIC_NAME.fullmatch(name))
    if len(found) < len(given):
        wrong = next(name for name in given if name not in found)
        raise WireError(field, f"must match {METRIC_NAME.pattern}, got {shown(wrong)}")
    if len(set(found)) != len(found):
        raise WireError(field, f"must not repeat a name, got {shown(list(found))}")
    return found


# Names repeat with every batch. Errors are not kept, so what is kept is small.
_names_of_a_batch: Final = lru_cache(maxsize=256)(_names)
