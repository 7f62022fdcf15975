"""Incidents, runs and detection's memory, made by hand."""

from __future__ import annotations

from snc_service.detect.memory import Memory
from snc_service.detect.running import Firing
from snc_service.store.types.incidents import Entry, Incident, RunFacts

NOW = 1_763_800_000.0


def entry(step, rule="breach", severity="warning", *, id=0, layer="fc1.weight", message="so"):
    return Entry(
        id=id or step, at=NOW, step=step, rule=rule, severity=severity, message=message,
        layer=layer, layers=1, value=2.0, limit=1.0,
    )  # fmt: skip


def incident(*entries, id=1, project="p", state="open", severity=None, **changes):
    order = ("info", "warning", "critical")
    worst = max((each.severity for each in entries), key=order.index)
    return Incident(
        id=id, run="r", project=project, state=state, severity=severity or worst,
        entries=entries, opened_at=NOW, updated_at=NOW, **changes,
    )  # fmt: skip


def memory(step, quiet, *, trained=10_000, gap=1) -> bytes:
    """Return the pulse of detection at ``step``: rule -> rows since it last fired."""
    firing = {rule: Firing(streak=0, quiet=rows) for rule, rows in quiet.items()}
    return Memory(step=step, gap=gap, trained=trained, firing=firing).pulse()


def facts(state="active", *, pulse=None, updated_at=NOW, last_step=0):
    return RunFacts("r", "p", state, updated_at, last_step, 1, pulse)
