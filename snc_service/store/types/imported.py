"""What ``snc import`` notes in the config of a run: when it began at its source, how long it took.

A config is whatever a job says, so anything but a time and a number is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

MARK: Final = "imported"
DIGEST: Final = "digest"  # which every import notes
SECONDS: Final = "seconds"


def started_at(config: Mapping[str, Any], otherwise: float) -> float:
    """Return Unix seconds; ``otherwise`` of a run that was not imported with times."""
    text = _noted(config, "started_at")
    if not isinstance(text, str):
        return otherwise
    try:
        at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return otherwise
    return at if at >= 0 else otherwise


def seconds(config: Mapping[str, Any], otherwise: float) -> float | None:
    """Return the seconds between the first and the last step at the source.

    None of an imported run whose source has no times; ``otherwise`` of a run that was not imported.
    """
    value = _noted(config, SECONDS)
    # Compared first: a whole number in JSON may be too large for a float.
    if not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1e12:
        return float(value)
    return None if isinstance(_noted(config, DIGEST), str) else otherwise


def _noted(config: Mapping[str, Any], name: str) -> Any:
    mark = config.get(MARK)
    return mark.get(name) if isinstance(mark, Mapping) else None
