"""Replay: judges the rows of a run in step order by several settings at once. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from snc_service.detect.memory import Memory
from snc_service.detect.rules import judge
from snc_service.store.types import Event, RunRows
from snc_service.wire import RuleSettings


@dataclass
class Replay:
    """The result of one set of rules for one run.

    ``fired`` holds the steps in which some rule fired, ``last_step`` is the newest step of the run.
    """

    events: list[Event] = field(default_factory=list)
    fired: set[int] = field(default_factory=set)
    last_step: int = 0
    memory: Memory = field(default_factory=Memory)

    @property
    def active(self) -> list[int]:
        """Return the training rows with an alarm, counted from 0: step 1 is row 0."""
        return sorted(step - 1 for step in self.fired if step > 0)


def replay(stream: Iterable[RunRows], settings: Sequence[RuleSettings | None]) -> list[Replay]:
    """Judge all rows of one run, in one pass, by each of ``settings``; None: those of the rows.

    Each starts from an empty state. Memory: one element of ``stream``, one state per settings, and
    the results.
    """
    replays = [Replay() for _ in settings]
    for rows in stream:
        for found, rules in zip(replays, settings, strict=True):
            verdict = judge(found.memory, rows, rules)
            found.events += verdict.events
            for steps in verdict.firing.values():
                found.fired.update(steps)
            found.last_step = max(found.last_step, *rows.batch.steps)
    return replays
