"""How often each rule was right on labelled trainings: what an event of it is worth.

The counts are of events on the public recordings and the trainings of `bench/instability`, with
the signals that a job sends by default: `bench/detection/leave_one_out.py --record` writes them.
An event was right if it came in a run with a fault, at its first row or later. They are counts of
small trainings, no probability for a run of another kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

FILE: Final = Path(__file__).with_suffix(".json")
LEAST_EVENTS: Final = 5  # fewer say nothing


@dataclass(frozen=True)
class TrackRecord:
    """Events of one rule: how many there were, and how many of them were right."""

    right: int
    events: int


@cache
def records() -> Mapping[str, TrackRecord]:
    """Return the record of each rule that has one, over all kinds of training."""
    by_rule: dict[str, dict[str, list[int]]] = json.loads(FILE.read_text())
    return MappingProxyType(
        {
            rule: TrackRecord(sum(right for right, _ in tasks.values()), events)
            for rule, tasks in by_rule.items()
            if (events := sum(count for _, count in tasks.values())) >= LEAST_EVENTS
        }
    )


def record(rule: str) -> TrackRecord | None:
    """Return the record of a rule; None if it counts facts, or had too few events."""
    return records().get(rule)


def sentence(rule: str) -> str | None:
    """Return the record in words, None where there is none."""
    known = record(rule)
    if known is None:
        return None
    return f"events of {rule} were right in {known.right} of {known.events} on labelled trainings"
