"""Calm rows: judged together or row by row, events and memory are equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from snc_service.detect.calm import judgement
from snc_service.detect.calm.judgement import judge_calm
from snc_service.detect.calm.layers import CalmLayers
from snc_service.detect.calm.row import CalmRow
from snc_service.detect.memory import Memory
from snc_service.detect.rules import RunRules, judge
from snc_service.store.types import RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import ABSENT, Batch, LayerTable, RuleSettings
from snc_service.wire.rule_settings import SHIPPED

METRICS = ("sigma", "threshold", "scale", "frobenius", "grad_norm", "update_norm")
SCALARS = ("loss", "lr", "grad_norm", "skipped_steps", "moving_target", "guard_vetoes")
ROWS, RUNS = 130, 10


def settings(rng: np.random.Generator) -> RuleSettings:
    """Return limits that a healthy run is often close to, and sometimes beyond."""
    rules = {}
    for rule, shipped in SHIPPED.items():
        near = {"limit": shipped.limit * float(rng.uniform(0.2, 1)), "armed": 3}
        near["for_rows"] = int(rng.integers(1, 3))
        rules[rule] = {"on": False} if rng.random() < 0.1 else near
    return RuleSettings.parse({"rules": rules if rng.random() < 0.7 else {}})


def run(seed: int) -> list[RunRows]:
    """Return single rows of a training with some of what may happen in one."""
    rng = np.random.default_rng(seed)
    layers = tuple(f"l{each}" for each in range(int(rng.choice([1, 3, 8, 101]))))
    metrics = ("sigma", *(name for name in METRICS[1:] if rng.random() < 0.8))
    scalars = tuple(name for name in SCALARS if rng.random() < 0.7)
    by, notes, found = settings(rng), (), []
    size, step, attempt, trend = np.ones((len(metrics), len(layers))), 0, 0, 0.0
    if rng.random() < 0.3:
        size[:, 0] = 1e-9  # a layer that is born at zero
    for seq in range(ROWS):
        now_metrics, now_layers, new = metrics, layers, False
        size = size * np.exp(rng.normal(trend, 0.003, size.shape))
        values = size.astype(np.float32)
        loss = 2 * np.exp(-seq / 60) + 0.02 * rng.standard_normal() + 40 * max(trend, 0)
        of_run = {"loss": loss, "lr": 1e-3, "grad_norm": np.exp(0.1 * rng.standard_normal())}
        of_run |= {"skipped_steps": seq // 50, "moving_target": float(seq > 120 and seed % 5 == 0)}
        places = {name: place for place, name in enumerate(metrics)}
        if "threshold" in places:
            values[places["threshold"]] = 2.0
        if "scale" in places:
            values[places["scale"]] = np.where(rng.random(len(layers)) < 0.02, 0.9, 1.0)
        if "update_norm" in places:
            values[places["update_norm"]] *= 0.01
        if "grad_norm" in places and rng.random() < 0.1:
            values[places["grad_norm"], rng.integers(len(layers))] = 0.0
        match int(rng.integers(0, 60)):
            case 0:
                values[rng.integers(len(metrics)), rng.integers(len(layers))] = rng.choice(
                    np.array([0, np.nan, np.inf, 3.4e38, -1, 1e-30], np.float32)
                )
            case 1:
                values[:, rng.integers(len(layers))] = ABSENT
            case 2:
                trend = float(rng.choice([0, 0, 0.02, -0.02]))
            case 3:
                by = settings(rng)
            case 4:
                notes = (*notes, Annotation(len(notes) + 1, step + 3, 3, "", "", 0.0))
            case 5:
                step, attempt, new = max(0, step - 30), attempt + 1, True
            case 6:
                now_layers = layers[::-1]
            case 7:
                of_run["loss"] = rng.choice([0.0, -1.0, np.nan, 1e30])
            case 8 if found:  # a weight stands still
                if len(found[-1].batch.layers) and found[-1].batch.values.shape[0] == len(metrics):
                    values[:, 0] = found[-1].batch.values[:, 0, 0]
            case 9:
                now_metrics, values = metrics[:1], values[:1]
            case 11 | 12 | 13 if found and "grad_norm" in places:  # a scaler skips the step
                if found[-1].batch.values.shape[0] == len(metrics):
                    values = found[-1].batch.values[:, 0].copy()
                    values[places["grad_norm"]] = np.nan
            case 10:
                size[0] *= 1.3
        step += int(rng.choice([1, 1, 1, 5]))
        batch = Batch(
            "w", seq, LayerTable.of_names(now_layers).hash, (step,), now_metrics, values[:, None],
            scalars, np.array([[of_run.get(name, 0.0)] for name in scalars], np.float32),
        )  # fmt: skip
        found.append(RunRows(f"r{seed}", batch, now_layers, attempt, new, by, notes))
    return found


@pytest.fixture(scope="module")
def told() -> list[list[tuple[bytes, bytes, list]]]:
    """Return state, pulse and events of each run after each row, judged one by one."""
    found = []
    for seed in range(RUNS):
        memory, steps = Memory(), []
        for rows in run(seed):
            events = judge(memory, rows).events
            steps.append((memory.dump(), memory.pulse(), events))
        found.append(steps)
    return found


def test_rows_of_several_runs_together_give_what_each_gives_alone(told, monkeypatch):
    monkeypatch.setattr(judgement, "MOST_CELLS", 250)  # two runs of 101 layers, the third apart
    runs = [run(seed) for seed in range(RUNS)]
    together = [RunRules(None) for _ in range(RUNS)]
    alone = [RunRules(None) for _ in range(RUNS)]
    for seq in range(ROWS):
        found = RunRules.advance_together(
            [(rules, rows[seq]) for rules, rows in zip(together, runs, strict=True)]
        )
        for seed in range(RUNS):
            assert alone[seed].advance(runs[seed][seq]) == found[seed] == told[seed][seq][2]
            for rules in (alone[seed], together[seed]):
                assert (rules.dump(), rules.pulse()) == told[seed][seq][:2], (seed, seq)


def test_the_rows_of_this_test_are_calm_and_not(told):
    calm = 0
    for seed in range(RUNS):
        memory = Memory()
        for rows in run(seed):
            (is_calm,) = judge_calm([(memory, rows)])
            calm += is_calm
            if not is_calm:
                judge(memory, rows)
    assert 0.3 * RUNS * ROWS < calm < 0.9 * RUNS * ROWS
    rules = {event.rule for steps in told for *_, events in steps for event in events}
    assert len(rules) >= 10, rules


def test_an_error_of_one_run_is_returned_and_the_others_advance():
    good, bad = RunRules(None), RunRules(None)
    rows = run(0)[0]
    bad._memory.gap = "of no kind"
    found = RunRules.advance_together([(bad, rows), (good, rows)])
    assert isinstance(found[0], Exception)
    assert found[1] == RunRules(None).advance(rows)


def test_a_row_that_breaks_what_is_judged_together_costs_no_other_run_an_event(told, monkeypatch):
    judged, advanced, broken = CalmLayers.judge, CalmRow.advance, set()

    def judge_layers(self):
        judged(self)
        if any(row.rows.run == "r3" for row in self.rows):
            broken.add(len(self.rows))
            raise OverflowError

    def advance(self):
        advanced(self)
        if self.rows.run == "r5":
            broken.add("r5")
            raise ZeroDivisionError

    monkeypatch.setattr(CalmLayers, "judge", judge_layers)
    monkeypatch.setattr(CalmRow, "advance", advance)
    runs, together = [run(seed) for seed in range(RUNS)], [RunRules(None) for _ in range(RUNS)]
    for seq in range(ROWS):
        found = RunRules.advance_together(
            [(rules, rows[seq]) for rules, rows in zip(together, runs, strict=True)]
        )
        for seed in range(RUNS):
            state = (together[seed].dump(), together[seed].pulse(), found[seed])
            assert state == told[seed][seq], (seed, seq)
    assert {"r5", 1} < broken  # alone, and with others
