"""What an incident is called: the event that names it, its worst event, and what that is worth."""

from __future__ import annotations

from typing import Final

from snc_service.alerts.document import rank
from snc_service.detect.track_record import sentence
from snc_service.store.types.incidents import Entry, Incident

QUIET_STEPS: Final = 50  # steps that separate what belongs together from what comes later


def head(incident: Incident, severity: str | None = None) -> Entry:
    """Return the entry that names an incident, or named it when it was of a milder ``severity``.

    That is the first entry. Where the severity rose in entries that began more than 50 steps after
    those before, it is the first of these: a warning that lingers does not name what came later.
    Where entries before the last are omitted, nobody knows when they ended, and it begins nothing.
    """
    most = rank(severity or incident.severity)
    found = begin = before = incident.entries[0]
    worst = rank(found.severity)
    known = len(incident.entries) - bool(incident.omitted)
    for place, entry in enumerate(incident.entries[1:], start=1):
        if place < known and entry.step - before.step > QUIET_STEPS:
            begin = entry
        if worst < rank(entry.severity) <= most:
            found, worst = begin, rank(entry.severity)
        before = entry
    return found


def worst_entry(incident: Incident) -> Entry:
    """Return the first of the most severe entries."""
    return max(incident.entries, key=lambda entry: rank(entry.severity))


def confidence(incident: Incident) -> str | None:
    """Return how often events like the worst were right, or like the head; None: not known."""
    return sentence(worst_entry(incident).rule) or sentence(head(incident).rule)
