"""The rules: streaming detectors over the rows of a run, and the one place that decides an event.

A rule looks at all layers at once and raises one event per incident, not one per layer: at the
first row that fires, and again only after more than 50 quiet rows. Rows that are several steps
apart count in steps. Everything here is pure: live ingest, a replay after a crash and a test call
the same `advance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from snc_service.detect import findings
from snc_service.detect.findings import Finding, Look, Seen
from snc_service.detect.memory import REST_ROWS, Counts, Firing, Memory
from snc_service.detect.signals import Mask, Signals
from snc_service.detect.trends import Doubles, follow
from snc_service.store.protocol import Event, Rows, Severity


@dataclass(frozen=True)
class Rule:
    """A detector: it fires in rows where ``look`` finds a value above ``limit``.

    ``hold`` rows in a row must be above it, and rules that compare with the past are armed at the
    ``armed``-th training row; both are meant for rows that are one step apart.
    """

    name: str
    severity: Severity
    look: Look
    limit: float
    hold: int = 1
    armed: int = 0


RULES: Final[tuple[Rule, ...]] = (
    Rule("nonfinite", "critical", findings.nonfinite, limit=0),
    Rule("breach", "warning", findings.breach, limit=0),
    Rule("guard", "warning", findings.guard, limit=0),
    Rule("guard_rollback", "critical", findings.guard_rollback, limit=0),
    Rule("lr_jump", "warning", findings.lr_jump, limit=5.0, armed=4),
    Rule("update_ratio", "warning", findings.update_ratio, limit=0.06, hold=2, armed=10),
    Rule("sigma_jump", "critical", findings.sigma_jump, limit=0.10, armed=10),
    Rule("sigma_growth", "warning", findings.sigma_growth, limit=0.75, hold=2, armed=20),
    Rule("sigma_vs_init", "warning", findings.sigma_vs_init, limit=1.7, hold=3, armed=20),
    Rule("grad_spike", "warning", findings.grad_spike, limit=8.0, armed=20),
    Rule("grad_vanish", "warning", findings.grad_vanish, limit=2.3, hold=3, armed=20),
    Rule("loss_divergence", "critical", findings.loss_divergence, limit=3.0, hold=3, armed=20),
)


def advance(
    state: bytes | None, rows: Rows, rules: Sequence[Rule] = RULES
) -> tuple[bytes, list[Event]]:
    """Return the state after ``rows`` and the events they raise, in row order.

    However the rows of a run are cut into batches, the events are the same. Cost: a few passes
    over the batch, and about ten float32 operations of length L per row; the state has at most 36
    bytes a layer.
    """
    memory = Memory.load(state)
    if rows.new_attempt:
        memory.restart()
    begins = memory.step is None
    gaps, usual = memory.gaps(rows.batch.steps)
    signals = Signals(rows)
    trends = follow(signals, memory, findings.num_broken(signals) == 0, begins=begins)
    scores = _scores(signals, memory, trends.judged)
    seen = Seen(signals, trends, gaps, scores)
    found: list[tuple[int, Event]] = []
    for rule in rules:
        finding = rule.look(seen)
        if finding is not None:
            firing = memory.firing.setdefault(rule.name, Firing())
            edges = _edges(rule, finding, firing, trends.trained, usual)
            found += [(row, _event(rule, finding, rows.batch.steps[row], row)) for row in edges]
    found.sort(key=lambda pair: pair[0])
    return memory.dump(), [event for _, event in found]


def _edges(
    rule: Rule, finding: Finding, firing: Firing, trained: Counts, usual: Counts
) -> list[int]:
    """Return the rows at which an event of ``rule`` starts."""
    above = finding.values > rule.limit
    if not above.any():
        return firing.edges(above[finding.judged], usual, usual)
    above &= trained >= np.minimum(rule.armed, np.maximum(3, rule.armed // usual))
    hold = -(-rule.hold // usual)
    rest = np.minimum(REST_ROWS, np.maximum(5, REST_ROWS // usual))
    rows = np.flatnonzero(finding.judged)
    return [int(rows[i]) for i in firing.edges(above[rows], hold[rows], rest[rows])]


def _event(rule: Rule, finding: Finding, step: int, row: int) -> Event:
    told = finding.tell(row, rule.limit)
    return Event(
        step=step,
        rule=rule.name,
        severity=rule.severity,
        message=told.message,
        layer=told.layer,
        layers=told.layers,
        value=told.value,
        limit=told.limit,
    )


def _scores(signals: Signals, memory: Memory, judged: Mask) -> dict[str, Doubles]:
    """Return how unusual loss, gradient norm and learning rate are [S]; ``memory`` learns them."""
    found = {}
    for name, score in (("loss", _score_loss), ("grad_norm", _score_gradient), ("lr", _score_lr)):
        column = signals.scalar(name)
        if column is not None:
            use = judged & column.measured & np.isfinite(column.values)
            scores = np.full(len(judged), np.nan)
            for row in np.flatnonzero(use):
                scores[row] = score(memory, float(column.values[row]))
            found[name] = scores
    return found


def _score_loss(memory: Memory, loss: float) -> float:
    return memory.loss.score(loss, 0.02 * max(abs(loss), 0.05))


def _score_gradient(memory: Memory, norm: float) -> float:
    return memory.gradient.score(math.log(max(norm, 1e-20)), 0.1)


def _score_lr(memory: Memory, rate: float) -> float:
    before, memory.largest_lr = memory.largest_lr, max(memory.largest_lr, rate)
    return rate / before if before > 0 else 0.0
