"""Thresholds for the weights of a file: parsed and checked before any weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snc_client.audit.formats.stored import Unreadable, clean, reason_of, shown, size_of
from snc_client.audit.matrices import Part
from snc_service.wire import Policy, WireError

MAX_POLICY_BYTES = 1 << 20


def policy_of(thresholds: Sequence[str], path: Path | None) -> Policy:
    """Return the policy of the ``--threshold`` options or the ``--policy`` file; empty without.

    An option is ``THRESHOLD`` or ``PATTERN=THRESHOLD``; of several, the first match wins. Raises
    `Unreadable` for a wrong one. ``x init`` is refused: a file does not hold its first sigma.
    """
    try:
        if path is not None:
            policy = Policy.parse(_read(path))
        else:
            policy = Policy.parse({"entries": [_entry(text) for text in thresholds]})
    except WireError as error:
        raise Unreadable(clean(str(error))) from None
    for entry in policy.entries:
        if entry.limit is not None and entry.limit.unit in ("init", "auto"):
            raise Unreadable(
                f"threshold of {shown(entry.pattern)} is {entry.limit}, and a file does not know "
                'its first sigma: give a number or "<number>x rms"'
            )
    return policy


def require_matched(policy: Policy, parts: Sequence[Part]) -> None:
    """Refuse a policy with an entry that matches no measured weight: it would have no effect."""
    for entry in policy.entries:
        if not any(entry.matches(part.name) for part in parts):
            cure = "; write [[] for a literal [" if "[" in entry.pattern else ""
            raise Unreadable(f"{shown(entry.pattern)} matches no measured weight{cure}")


def threshold_of(policy: Policy, part: Part) -> float | None:
    """Return the upper limit for this matrix's sigma, None if there is none."""
    entry = policy.entry(part.name)
    limit = entry.limit if entry is not None else None
    if limit is None:
        return None
    rms = math.sqrt(part.fan_out / part.fan_in)
    return limit.factor * (rms if limit.unit == "rms" else 1.0)


def _entry(text: str) -> dict[str, Any]:
    """Read ``[PATTERN=]THRESHOLD``; the last = separates them, a pattern may hold others."""
    pattern, equals, threshold = text.rpartition("=")
    limit: float | str | None = threshold.strip()
    if limit == "none":
        limit = None
    else:
        try:
            limit = float(threshold)
        except ValueError:
            pass  # "3x rms" and the like: the wire parses and checks it
    return {"pattern": pattern.strip() if equals else "*", "threshold": limit, "action": "observe"}


def _read(path: Path) -> object:
    if size_of(path) > MAX_POLICY_BYTES:
        raise Unreadable(f"{shown(path)} must have at most {MAX_POLICY_BYTES} bytes to be a policy")
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{shown(path)} must hold a policy as JSON: {shown(error)}") from None
