"""The rules: streaming detectors over the rows of a run. Only this module creates their events.

    advance(state, rows, settings) -> (state, events)

Ingest keeps the state decoded, as `RunRules`; its bytes are written now and then.

A rule evaluates all layers at once and raises one event per incident, not one per layer: at the
first row that fires, and again only after more than 50 quiet rows. For rows that are several steps
apart, these counts are in steps. Everything here is pure. Live ingest, a replay after a crash, a
backtest and a benchmark call the same `advance`; `judge` also returns the steps in which each rule
fired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np

from snc_service.detect import layer_rules, onset, scalar_rules, value_rules
from snc_service.detect.batch_columns import BatchColumns
from snc_service.detect.calm.judgement import judge_calm
from snc_service.detect.findings import Look, RuleFinding, Seen
from snc_service.detect.memory import Memory
from snc_service.detect.planned import RELATIVE, planned
from snc_service.detect.running import LEAST_REST, REST_ROWS, Counts, Fired, Firing
from snc_service.detect.trends import follow
from snc_service.store.types import Event, RunRows
from snc_service.wire import RuleSetting, RuleSettings

# The function of each rule, in the order of the events of one row.
LOOKS: Final[Mapping[str, Look]] = MappingProxyType(
    {
        "nonfinite": value_rules.nonfinite,
        "breach": value_rules.breach,
        "breach_far": value_rules.breach_far,
        "guard": value_rules.guard,
        "guard_rollback": value_rules.guard_rollback,
        "lr_jump": scalar_rules.lr_jump,
        "update_ratio": layer_rules.update_ratio,
        "sigma_jump": layer_rules.sigma_jump,
        "sigma_growth": layer_rules.sigma_growth,
        "sigma_vs_init": layer_rules.sigma_vs_init,
        "coherent_growth": layer_rules.coherent_growth,
        "grad_spike": scalar_rules.grad_spike,
        "grad_vanish": layer_rules.grad_vanish,
        "loss_divergence": scalar_rules.loss_divergence,
        "loss_trend": scalar_rules.loss_trend,
        "loss_regain": scalar_rules.loss_regain,
        "shrink": layer_rules.shrink,
        "gain_growth": layer_rules.gain_growth,
        "unchanged": layer_rules.unchanged,
        "skipped_steps": scalar_rules.skipped_steps,
    }
)


@dataclass(frozen=True)
class Judgement:
    """The result of `judge`: ``firing`` holds the steps in which each rule fired.

    An event marks the first of them; while the rule goes on firing there is no second event.
    ``findings`` holds the values that each active rule compared with its limit, ``trained`` [S] the
    number of training rows before each row. A search for better limits needs both.
    """

    events: list[Event] = field(default_factory=list)
    firing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    findings: Mapping[str, RuleFinding] = field(default_factory=dict)
    trained: Counts = field(default_factory=lambda: np.empty(0, np.int64))


def advance(
    state: bytes | None, rows: RunRows, settings: RuleSettings | None = None
) -> tuple[bytes, list[Event]]:
    """Return the state after ``rows`` and the events they raise, in row order.

    ``state`` is the result of the last call for this run, or None before the first row.
    ``settings`` defaults to those of ``rows``. The events do not depend on how the rows are cut
    into batches. Cost: a few passes over the batch, and a few float32 operations of length L per
    row. The state has at most 72 bytes a layer.
    """
    memory = Memory.load(state)
    verdict = judge(memory, rows, settings)
    return memory.dump(), verdict.events


class RunRules:
    """The rules at work on one run, from the state that `dump` returned, None for a new run.

    After an error of `advance` nothing of it may be used any more.
    """

    def __init__(self, state: bytes | None) -> None:
        self._memory = Memory.load(state)

    def advance(self, rows: RunRows) -> list[Event]:
        """Return the events that the next rows of the run raise, in row order."""
        (is_calm,) = judge_calm([(self._memory, rows)])
        return [] if is_calm else judge(self._memory, rows).events

    @staticmethod
    def advance_together(
        items: Sequence[tuple[RunRules, RunRows]],
    ) -> list[list[Event] | Exception]:
        """Return the same for the next rows of several runs, which costs less; or their errors."""
        calm = judge_calm([(rules._memory, rows) for rules, rows in items])
        found: list[list[Event] | Exception] = []
        for (rules, rows), is_calm in zip(items, calm, strict=True):
            try:
                found.append([] if is_calm else judge(rules._memory, rows).events)
            except Exception as error:  # the other runs must not fail with it
                found.append(error)
        return found

    def dump(self) -> bytes:
        """Return the state as bytes; whoever goes on from them gets the same events."""
        return self._memory.dump()

    def pulse(self) -> bytes:
        """Return what `quiet_steps` reads: how long ago each rule fired."""
        return self._memory.pulse()

    @property
    def num_bytes(self) -> int:
        """Return the size in memory."""
        return self._memory.num_bytes


def judge(memory: Memory, rows: RunRows, settings: RuleSettings | None = None) -> Judgement:
    """Advance ``memory`` in place; return as well the steps in which each rule fired."""
    settings = rows.settings if settings is None else settings
    memory.set_apart()
    if rows.new_attempt:
        memory.restart()
    begins = memory.step is None
    gaps, usual = memory.gaps(rows.batch.steps)
    signals = BatchColumns(rows)
    num_broken = value_rules.num_broken(signals)
    skipped = value_rules.untouched(signals, memory, num_broken)
    plan = planned(rows, memory)
    trends = follow(signals, memory, num_broken == 0, plan.anew, begins=begins)
    scores = scalar_rules.scores(signals, memory, trends, plan.anew, gaps)
    settled = plan.settled(trends.trained, memory)  # -1: rules that compare with the past are muted
    seen = Seen(signals, np.where(skipped, 0, num_broken), trends, gaps, scores)
    found: list[tuple[int, Event]] = []
    outside: list[onset.Outside] = []
    lasting: set[int] = set()
    firing: dict[str, tuple[int, ...]] = {}
    findings: dict[str, RuleFinding] = {}
    steps = rows.batch.steps
    for name, look in LOOKS.items():
        finding = look(seen) if settings[name].on else None
        if finding is not None:
            findings[name] = finding
    for name in _above(findings, settings, memory):
        setting, finding = settings[name], findings[name]
        past = settled if name in RELATIVE else trends.trained
        fired = _fired(setting, finding, memory.of_rule(name), past, usual)
        found += [(row, _event(name, setting, finding, steps[row], row)) for row in fired.edges]
        if fired.rows:
            firing[name] = tuple(steps[row] for row in fired.rows)
            outside += onset.outside(name, setting.limit, finding, fired.rows)
            if setting.severity != "info":
                lasting.update(fired.rows)
    if outside or (lasting and memory.onset is not None):
        onset.remember(memory, rows, outside, lasting)
    found.sort(key=lambda pair: pair[0])
    events = [event for _, event in found]
    return Judgement(events, firing, findings, trends.trained)


def _above(
    findings: Mapping[str, RuleFinding], settings: RuleSettings, memory: Memory
) -> list[str]:
    """Return the rules above their limits in some row; count quiet rows for the others.

    Nearly every rule is below its limit in nearly every batch, so one comparison covers them all.
    """
    if not findings:
        return []
    limits = [settings[name].limit for name in findings]
    if len(next(iter(findings.values())).values) == 1:  # one row: plain numbers are faster
        is_above = [
            finding.values.item() > limit
            for finding, limit in zip(findings.values(), limits, strict=True)
        ]
    else:
        values = np.stack([finding.values for finding in findings.values()])
        is_above = np.logical_or.reduce(values > np.array(limits)[:, None], axis=1).tolist()
    above = []
    for name, is_one in zip(findings, is_above, strict=True):
        firing = memory.of_rule(name)  # for every rule: fixes their order in the state
        if is_one:
            above.append(name)
        else:
            firing.pass_over(int(np.count_nonzero(findings[name].judged)))
    return above


def _fired(
    setting: RuleSetting, finding: RuleFinding, firing: Firing, past: Counts, usual: Counts
) -> Fired:
    """Return the rows in which a rule fires, and those at which an event of it starts."""
    above = finding.values > setting.limit
    above &= past >= np.minimum(setting.armed, np.maximum(3, setting.armed // usual))
    hold = -(-setting.for_rows // usual)
    rest = np.minimum(REST_ROWS, np.maximum(LEAST_REST, REST_ROWS // usual))
    rows = np.flatnonzero(finding.judged)
    return firing.advance(above[rows], hold[rows], rest[rows]).at(rows)


def _event(name: str, setting: RuleSetting, finding: RuleFinding, step: int, row: int) -> Event:
    told = finding.tell(row, setting.limit)
    return Event(
        step=step,
        rule=name,
        severity=setting.severity,
        message=told.message,
        layer=told.layer,
        layers=told.layers,
        value=told.value,
        limit=told.limit,
    )
