"""Comparison of two lists of events of one run: added, gone, or moved in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from snc_service.store.types import Event


@dataclass(frozen=True)
class EventChange:
    """One event under two settings; None where the settings do not raise it."""

    before: Event | None
    after: Event | None

    @property
    def kind(self) -> Literal["same", "added", "gone", "moved"]:
        """Return the kind of the change."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "gone"
        return "same" if self.before.step == self.after.step else "moved"

    @property
    def moved(self) -> int | None:
        """Return by how many steps the event comes later, negative if earlier."""
        if self.before is None or self.after is None:
            return None
        return self.after.step - self.before.step

    @property
    def event(self) -> Event:
        """Return the event after the change, or before it if it is gone."""
        event = self.after or self.before
        assert event is not None
        return event


def compare(before: Sequence[Event], after: Sequence[Event]) -> list[EventChange]:
    """Pair the events of each rule, nearest steps first; return all in the order of steps."""
    changes: list[EventChange] = []
    for rule in dict.fromkeys(event.rule for event in (*before, *after)):
        old = [event for event in before if event.rule == rule]
        new = [event for event in after if event.rule == rule]
        changes += _paired(old, new)
    return sorted(changes, key=lambda change: (change.event.step, change.event.rule))


def _paired(old: list[Event], new: list[Event]) -> list[EventChange]:
    changes: list[EventChange] = []
    distances = sorted(
        (abs(a.step - b.step), i, j) for i, a in enumerate(old) for j, b in enumerate(new)
    )
    rest_old, rest_new = set(range(len(old))), set(range(len(new)))
    for _, i, j in distances:
        if i in rest_old and j in rest_new:
            changes.append(EventChange(old[i], new[j]))
            rest_old.remove(i)
            rest_new.remove(j)
    changes += [EventChange(old[i], None) for i in sorted(rest_old)]
    return changes + [EventChange(None, new[j]) for j in sorted(rest_new)]
