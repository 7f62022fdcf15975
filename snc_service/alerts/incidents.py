"""Incidents: events of a run within 50 steps of each other form one, until the run is quiet.

Everything here is pure. An event marks where a rule *began* to fire. The pulse of a run holds how
long the rule went on, so an incident that lasts does not count as resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from snc_service.alerts.document import rank
from snc_service.alerts.naming import QUIET_STEPS
from snc_service.detect.memory import Quiet, quiet_steps
from snc_service.store.types import END_STATES
from snc_service.store.types.incidents import Entry, Incident, IncidentChange, RunFacts

CLOSED_SECONDS: Final = 300.0  # after the end of a run, its incidents are resolved
SILENT_SECONDS: Final = 86_400.0  # after which the incidents of a silent run are resolved
MAX_ENTRIES: Final = 50  # listed in one incident; later ones are counted

# Rules about the job instead of its steps: over as soon as the job reports again.
_OF_THE_JOB: Final = frozenset(("run_silent",))


def gather(
    facts: RunFacts,
    incident: Incident | None,
    entries: Sequence[Entry],
    *,
    told: Callable[[Incident], Sequence[str]],
    now: float,
) -> list[IncidentChange]:
    """Return the changes that new ``entries`` make to a run's open incident, in order.

    ``told`` returns the receivers of an incident. An incident that became worse wakes its
    receivers. Other new entries are listed in the next message.
    """
    quiet = quiet_steps(facts.pulse)
    changes: list[IncidentChange] = []
    current, wake = incident, False
    for place, entry in enumerate(entries):
        if entry.severity == "info":
            changes += _notice(facts, entry, told)
            continue
        anew = {each.rule for each in entries[place:]}
        if current is not None and not _joins(current, entry, quiet, anew):
            changes.append(IncidentChange(resolved(current, now), told(current), wake=True))
            current = None
        if current is None:
            current, wake = _opened(facts, entry, "open"), True
        else:
            worse = rank(entry.severity) > rank(current.severity)
            current, wake = _joined(current, entry, now), wake or worse
    if current is not None and current is not incident:
        revision = 1 if incident is None or current.id == 0 else incident.revision + 1
        changes.append(
            IncidentChange(replace(current, revision=revision), told(current), wake=wake)
        )
    return changes


def is_over(incident: Incident, facts: RunFacts, now: float) -> bool:
    """Return whether an incident is over: its rules are quiet, or its run ended long enough ago."""
    if facts.state != "active":
        return is_abandoned(facts.state, facts.updated_at, now)
    quiet = quiet_steps(facts.pulse)
    lasting = [entry for entry in incident.entries if entry.rule not in _OF_THE_JOB]
    return all(_steps_ago(entry, quiet) >= QUIET_STEPS for entry in lasting)


def is_abandoned(state: str, updated_at: float, now: float) -> bool:
    """Return whether a run that is not active was last updated so long ago that nothing lasts."""
    return now - updated_at >= (CLOSED_SECONDS if state in END_STATES else SILENT_SECONDS)


def resolved(incident: Incident, now: float) -> Incident:
    """Return the incident as resolved."""
    return replace(
        incident,
        state="resolved",
        resolved_at=now,
        updated_at=now,
        revision=incident.revision + 1,
    )


def _notice(
    facts: RunFacts, entry: Entry, told: Callable[[Incident], Sequence[str]]
) -> list[IncidentChange]:
    notice = _opened(facts, entry, "notice")
    receivers = told(notice)
    return [IncidentChange(notice, receivers)] if receivers else []


def _opened(facts: RunFacts, entry: Entry, state: str) -> Incident:
    return Incident(
        id=0,
        run=facts.run,
        project=facts.project,
        state="notice" if state == "notice" else "open",
        severity=entry.severity,
        entries=(entry,),
        opened_at=entry.at,
        updated_at=entry.at,
    )


def _joined(incident: Incident, entry: Entry, now: float) -> Incident:
    worse = rank(entry.severity) > rank(incident.severity)
    fits = len(incident.entries) < MAX_ENTRIES
    # What made it worse is listed, whatever came before.
    kept = incident.entries if fits or not worse else incident.entries[:-1]
    return replace(
        incident,
        severity=entry.severity if worse else incident.severity,
        entries=(*kept, entry) if fits or worse else kept,
        omitted=incident.omitted + (not fits),
        updated_at=now,
        # An acknowledged warning does not acknowledge a critical incident.
        acknowledged_at=None if worse else incident.acknowledged_at,
        acknowledged_by="" if worse else incident.acknowledged_by,
    )


def _joins(incident: Incident, entry: Entry, quiet: Quiet, anew: Collection[str]) -> bool:
    """Return whether a rule of ``incident`` fired within 50 steps before ``entry``.

    Rules in ``anew``, which raise an event now or later, were quiet before it. That they fire now
    does not show how long they fired then.
    """
    if entry.step < incident.entries[-1].step:
        return True  # steps went back: the same incident again
    if quiet.step is None:
        return entry.step - incident.entries[-1].step <= QUIET_STEPS
    newest = max(
        max(e.step, 0 if e.rule in anew else quiet.step - _steps_ago(e, quiet))
        for e in incident.entries
    )
    return entry.step - newest <= QUIET_STEPS


def _steps_ago(entry: Entry, quiet: Quiet) -> int:
    """Return how many steps ago the rule of ``entry`` last fired."""
    if quiet.step is None:  # only events of the job so far
        return 0
    if entry.rule in quiet.rules:
        return min(quiet.rules[entry.rule], quiet.seen)
    if entry.step <= quiet.step:
        return min(quiet.step - entry.step, quiet.seen)
    return quiet.seen  # steps went back since
