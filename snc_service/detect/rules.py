"""The rules: streaming detectors over the rows of a run, and the one place that decides an event.

    advance(state, rows, settings) -> (state, events)

A rule looks at all layers at once and raises one event per incident, not one per layer: at the
first row that fires, and again only after more than 50 quiet rows. Rows that are several steps
apart count in steps. Everything here is pure: live ingest, a replay after a crash, a backtest and a
benchmark call the same `advance`, and whoever also wants to know for how long a rule fired calls
`judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np

from snc_service.detect import course, faults, movement, onset
from snc_service.detect.batch_columns import BatchColumns
from snc_service.detect.findings import Look, RuleFinding, Seen
from snc_service.detect.memory import Memory
from snc_service.detect.planned import RELATIVE, planned
from snc_service.detect.running import REST_ROWS, Counts, Fired, Firing
from snc_service.detect.trends import follow
from snc_service.store.types import Event, RunRows
from snc_service.wire import RuleSetting, RuleSettings

# What each rule looks at, in the order in which rules of one row speak.
LOOKS: Final[Mapping[str, Look]] = MappingProxyType(
    {
        "nonfinite": faults.nonfinite,
        "breach": faults.breach,
        "guard": faults.guard,
        "guard_rollback": faults.guard_rollback,
        "lr_jump": course.lr_jump,
        "update_ratio": movement.update_ratio,
        "sigma_jump": movement.sigma_jump,
        "sigma_growth": movement.sigma_growth,
        "sigma_vs_init": movement.sigma_vs_init,
        "coherent_growth": movement.coherent_growth,
        "grad_spike": course.grad_spike,
        "grad_vanish": movement.grad_vanish,
        "loss_divergence": course.loss_divergence,
        "loss_trend": course.loss_trend,
        "skipped_steps": course.skipped_steps,
    }
)


@dataclass(frozen=True)
class Judgement:
    """What `judge` found in some rows: ``firing`` holds the steps in which each rule fired.

    An event marks where a rule began to fire; a rule that goes on fires without another one.
    ``findings`` is what each rule that is on compared with its limit, ``trained`` [S] how many
    training rows came before each row: whoever looks for limits needs both.
    """

    state: bytes
    events: list[Event] = field(default_factory=list)
    firing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    findings: Mapping[str, RuleFinding] = field(default_factory=dict)
    trained: Counts = field(default_factory=lambda: np.empty(0, np.int64))


def advance(
    state: bytes | None, rows: RunRows, settings: RuleSettings | None = None
) -> tuple[bytes, list[Event]]:
    """Return the state after ``rows`` and the events they raise, in row order.

    ``state`` is what the last call on this run returned, None before the first row; ``settings``
    are those that the rows carry, unless others are given. However the rows of a run are cut into
    batches, the events are the same. Cost: a few passes over the batch, and a few float32
    operations of length L per row; the state has at most 56 bytes a layer.
    """
    verdict = judge(state, rows, settings)
    return verdict.state, verdict.events


def judge(state: bytes | None, rows: RunRows, settings: RuleSettings | None = None) -> Judgement:
    """Do what `advance` does, and say as well in which steps each rule fired."""
    settings = rows.settings if settings is None else settings
    memory = Memory.load(state)
    if rows.new_attempt:
        memory.restart()
    begins = memory.step is None
    gaps, usual = memory.gaps(rows.batch.steps)
    signals = BatchColumns(rows)
    num_broken = faults.num_broken(signals)
    plan = planned(rows, memory)
    trends = follow(signals, memory, num_broken == 0, plan.anew, begins=begins)
    scores = course.scores(signals, memory, trends.judged, plan.anew, gaps)
    settled = plan.settled(trends.trained, memory)  # -1: no rule that compares may speak
    seen = Seen(signals, num_broken, trends, gaps, scores)
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
    return Judgement(memory.dump(), events, firing, findings, trends.trained)


def _above(
    findings: Mapping[str, RuleFinding], settings: RuleSettings, memory: Memory
) -> list[str]:
    """Return the rules above their limits in some row; the others have passed over all of them.

    They are nearly all rules of nearly all batches, so they are told apart in one comparison.
    """
    if not findings:
        return []
    values = np.stack([finding.values for finding in findings.values()])
    limits = np.array([settings[name].limit for name in findings])
    is_above = np.logical_or.reduce(values > limits[:, None], axis=1).tolist()
    above = []
    for name, is_one in zip(findings, is_above, strict=True):
        firing = memory.of_rule(name)  # also of one above: the state keeps the order of the rules
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
    rest = np.minimum(REST_ROWS, np.maximum(5, REST_ROWS // usual))
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
