"""The onset: the order in which layers left their healthy band.

A layer is outside while a rule fires that compares each layer with its own limit, and the layer is
one of those above it. The order is that of the newest incident: once no layer was outside for more
than 50 steps, and no rule fired that keeps an incident open, the next one begins a new order. It
lives in detection's state, so it is the same whatever was stored, sent again or replayed.

A rule fires some rows after a layer went wrong. `traced` goes back from there, in stored values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from snc_service.detect.findings import RuleFinding
from snc_service.detect.memory import Memory
from snc_service.detect.running import REST_ROWS
from snc_service.store.types import RunRows
from snc_service.wire.batch import Floats

# The rules that compare single layers, in the order of their numbers in the state.
BAND_RULES: Final = ("update_ratio", "sigma_jump", "sigma_growth", "sigma_vs_init", "breach")
EVENT_ORDER: Final = ("breach", "update_ratio", "sigma_jump", "sigma_growth", "sigma_vs_init")


@dataclass(frozen=True)
class Left:
    """A layer that left its band: the step, the rule, and the value as a multiple of the limit."""

    layer: str
    step: int
    rule: str
    times_limit: float


TRACED_ROWS: Final = 400  # before an alarm: the older half says what was usual
LEAST_ROWS: Final = 20  # fewer say nothing about what was usual
LEAST_WIDTH: Final = 0.02  # of the band around the usual log sigma, on one side
DEVIATIONS: Final = 4.0  # of single rows, the same


@dataclass(frozen=True, eq=False)
class Outside:
    """One row in which a rule fired: the value of each layer [L] as a multiple of the limit."""

    row: int
    rule: int
    times_limit: Floats


def outside(rule: str, limit: float, finding: RuleFinding, rows: Sequence[int]) -> list[Outside]:
    """Return the layers outside in the ``rows`` in which a rule fired."""
    if rule not in BAND_RULES or finding.columns is None:
        return []
    number, least = BAND_RULES.index(rule), max(limit, 1e-9)
    if rule == "breach":  # its limit is a number of layers, its band ends at the threshold
        least = 1.0
    with np.errstate(over="ignore"):  # of a hostile row: infinitely far outside
        return [Outside(row, number, finding.columns[row] / np.float32(least)) for row in rows]


def remember(
    memory: Memory, rows: RunRows, found: Sequence[Outside], lasting: Collection[int] = ()
) -> None:
    """Note, row by row, which layers are outside for the first time since the onset.

    In the rows ``lasting`` some rule fired that keeps an incident open: what leaves its band after
    them belongs to it.
    """
    places = None if memory.covers(rows.layers) else memory.places(rows.layers)
    outside: dict[int, list[Outside]] = {row: [] for row in lasting}
    for each in found:
        outside.setdefault(each.row, []).append(each)
    for row in sorted(outside):
        _remember(memory, places, rows.batch.steps[row], outside[row])


def _remember(
    memory: Memory, places: npt.NDArray[np.intp] | None, step: int, found: Sequence[Outside]
) -> None:
    before = memory.onset_newest
    if memory.onset is None or before is None or step - before > _rest(memory):
        if not found:
            return  # no layer has left its band yet
        memory.onset = step
        memory.columns["left_after"].fill(np.nan)
    memory.onset_newest = step
    for each in found:
        left = memory.columns["left_after"]
        inside = np.isnan(left if places is None else left[places])
        fresh = np.flatnonzero((each.times_limit > 1) & inside)
        where = fresh if places is None else places[fresh]
        memory.columns["left_after"][where] = step - memory.onset
        memory.columns["left_by"][where] = each.times_limit[fresh]
        memory.columns["left_rule"][where] = each.rule


def order(state: bytes | None, layers: Sequence[str]) -> list[Left]:
    """Return the layers that left their band, by step; within a step as an incident names them.

    That is by rule, in the order of events, and for one rule the largest multiple first.

    Cost: reads the whole state, which is at most 72 bytes a layer.
    """
    memory = Memory.load(state)
    if memory.onset is None:
        return []
    places = memory.places(tuple(layers))
    after, by, rule = (memory.columns[f"left_{name}"][places] for name in ("after", "by", "rule"))
    left = np.flatnonzero(~np.isnan(after))
    # Of one step, the rule that is judged first names the incident: its layers come first.
    turn = np.array([EVENT_ORDER.index(name) for name in BAND_RULES])
    turns = turn[np.nan_to_num(rule[left]).astype(int)]
    in_order = left[np.lexsort((left, -by[left], turns, after[left]))]
    return [
        Left(
            layers[i],
            memory.onset + int(after[i]),
            BAND_RULES[int(rule[i])],
            float(by[i]),
        )
        for i in in_order.tolist()
    ]


def traced(steps: npt.NDArray[np.int64], sigma: Floats, alarm: int) -> int:
    """Return the step from which on a layer was above its usual sigma until its ``alarm``.

    ``sigma`` [B] is the layer's, at ``steps`` [B]. What is usual is a line through the logarithms
    of the older half of the rows; its slope is never negative, since a fall that ends is no rise.
    The alarm itself is returned where the layer was within its band until then.
    """
    with np.errstate(all="ignore"):
        logs = np.log(sigma.astype(np.float64))
    known = np.isfinite(logs) & (steps <= alarm)
    at, logs = steps[known][-TRACED_ROWS:], logs[known][-TRACED_ROWS:]
    if len(at) < LEAST_ROWS:
        return alarm
    past = len(at) // 2
    since = (at - at[0]).astype(np.float64)
    centred = since[:past] - since[:past].mean()
    slope = max(0.0, float(centred @ logs[:past] / (centred @ centred)))
    rest = logs - slope * since
    rest -= np.median(rest[:past])
    width = max(LEAST_WIDTH, DEVIATIONS * 1.4826 * float(np.median(np.abs(rest[:past]))))
    above = int(np.flatnonzero(rest <= width)[-1]) + 1
    return int(at[above]) if above < len(at) else alarm


def _rest(memory: Memory) -> int:
    return max(REST_ROWS, 5 * (memory.gap or 1))
