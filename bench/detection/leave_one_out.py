"""The table of docs/rules.md: shipped rules, limits chosen without a task, and baselines.

    OMP_NUM_THREADS=1 python bench/detection/leave_one_out.py FOLDER... [--record FILE]

FOLDER holds labelled runs as bench/instability/run.py --keep writes them; each is scored by itself.
With more than one, a last table holds all of them together. *Leave one task out*: for each task,
the limits of all rules are chosen on the runs of the other tasks of all folders, from the
shipped ones times the factors below, or off; then they judge the runs of that task. Intervals are
the 5 and 95 % quantiles of 1,000 draws of scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from baselines import BASELINES
from outcomes import HEADER, Outcome, line, outcome
from recorded import Mask, Recorded, any_of, fires, recordings

from snc_service.wire.rule_settings import SHIPPED

FACTORS = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, float("inf"))
FIXED = ("nonfinite", "breach", "breach_far", "guard", "guard_rollback", "skipped_steps")
WORTH = {"detected": 1.0, "early": 0.5, "false": 1.2}  # of one run or one false alarm
MARGIN = 0.5  # by which another limit must beat the shipped one


def shipped(run: Recorded) -> Mask:
    return any_of(run.firing.values(), run.num_rows)


def worth(outcomes: Iterable[Outcome]) -> float:
    total = 0.0
    for each in outcomes:
        total -= WORTH["false"] * each.false_alarms
        if each.lead is not None:
            total += WORTH["detected"] + WORTH["early"] * (each.gradual and each.lead >= 5)
    return total


class Search:
    """Chooses the factor of each limit on some runs, rule by rule, the others held."""

    def __init__(self, runs: Sequence[Recorded]) -> None:
        self.runs = runs
        self.rules = [name for name in SHIPPED if name not in FIXED]
        self.masks = [
            {
                (name, factor): fires(
                    run, name, replace(SHIPPED[name], limit=factor * SHIPPED[name].limit)
                )
                for name in self.rules
                for factor in FACTORS
            }
            for run in runs
        ]
        self.always = [any_of((run.firing[n] for n in FIXED), run.num_rows) for run in runs]

    def active(self, place: int, factors: Mapping[str, float]) -> Mask:
        masks = self.masks[place]
        return self.always[place] | any_of(
            (masks[pair] for pair in factors.items()), self.runs[place].num_rows
        )

    def outcome(self, place: int, factors: Mapping[str, float]) -> Outcome:
        run = self.runs[place]
        return outcome(run.label, f"{run.task}_{run.scenario}", self.active(place, factors))

    def chosen(self, places: Sequence[int]) -> dict[str, float]:
        factors = dict.fromkeys(self.rules, 1.0)
        for name in self.rules:
            rest = [
                self.always[p]
                | any_of(
                    (self.masks[p][pair] for pair in factors.items() if pair[0] != name),
                    self.runs[p].num_rows,
                )
                for p in places
            ]
            values = {}
            for factor in FACTORS:
                found = (
                    outcome(self.runs[p].label, "", other | self.masks[p][name, factor])
                    for p, other in zip(places, rest, strict=True)
                )
                values[factor] = worth(found)
            best = max(values, key=lambda factor: values[factor])
            factors[name] = best if values[best] > values[1.0] + MARGIN else 1.0
        return factors


def leave_one_out(runs: Sequence[Recorded]) -> tuple[list[Outcome], list[str]]:
    """Return the outcome of each run under limits chosen without its task, and what was chosen."""
    search, found, said = Search(runs), [None] * len(runs), []
    for task in sorted({run.task for run in runs}):
        others = [place for place, run in enumerate(runs) if run.task != task]
        factors = search.chosen(others)
        changed = {name: factor for name, factor in factors.items() if factor != 1.0}
        said.append(f"  without {task}: {changed or 'the shipped limits'}")
        for place, run in enumerate(runs):
            if run.task == task:
                found[place] = search.outcome(place, factors)
    return found, said


def scored(runs: Sequence[Recorded]) -> list[Outcome]:
    return [outcome(r.label, f"{r.task}_{r.scenario}", shipped(r)) for r in runs]


def table(what: str, runs: Sequence[Recorded], default: Sequence[Recorded]) -> None:
    tasks = {run.task for run in runs}
    print(f"\n== {what}: {len(runs)} runs of {len(tasks)} tasks, ", end="")
    print(f"{sum(run.num_rows for run in runs)} rows\n{HEADER}")
    print(line("shipped, what a job sends itself", scored(default)))
    print(line("shipped, with update_norm", scored(runs)))
    for name, baseline in BASELINES.items():
        found = [outcome(r.label, f"{r.task}_{r.scenario}", baseline(r.signals)) for r in runs]
        print(line(name, found))
    misses(default)


def misses(runs: Sequence[Recorded]) -> None:
    """Print what was missed, and which rule opened each false alarm."""
    missed, false = [], Counter[str]()
    for run in runs:
        active = shipped(run)
        found = outcome(run.label, "", active)
        if found.symptom and found.lead is None:
            missed.append(run.label.run)
        rows = np.flatnonzero(active)
        last = -(10**9)
        for row in rows.tolist():
            if row - last > 50 and row < found.healthy_rows:
                rules = [name for name, mask in run.firing.items() if mask[row]]
                false[f"{run.label.run} row {row} {'+'.join(rules)}"] += 1
            last = row
    print(f"missed ({len(missed)}): {', '.join(missed) or 'none'}")
    print(f"false alarms ({sum(false.values())}): {'; '.join(false) or 'none'}")


def right_events(run: Recorded, name: str) -> tuple[int, int]:
    """Return how many events of a rule were right in a run, and how many there were."""
    rows = np.flatnonzero(run.firing[name]).tolist()
    begins = [row for i, row in enumerate(rows) if i == 0 or row - rows[i - 1] > 50]
    right = [row for row in begins if not run.label.healthy and row >= run.label.cause]
    return len(right), len(begins)


def record(runs: Sequence[Recorded]) -> dict[str, dict[str, list[int]]]:
    """Return rule -> task -> [right events, events], what snc_service/detect ships."""
    found: dict[str, dict[str, list[int]]] = {}
    for name in SHIPPED:
        for run in runs:
            right, events = right_events(run, name)
            if events:
                counts = found.setdefault(name, {}).setdefault(run.task, [0, 0])
                counts[0], counts[1] = counts[0] + right, counts[1] + events
    return found


def without_each(runs: Sequence[Recorded]) -> None:
    """Print what each rule is worth: events that were right, and figures without it."""
    print("\nrule: right events / events; figures of all rules but this one")
    for name, tasks in record(runs).items():
        rest = [
            outcome(
                run.label,
                f"{run.task}_{run.scenario}",
                any_of((m for n, m in run.firing.items() if n != name), run.num_rows),
            )
            for run in runs
        ]
        right, events = (sum(counts[i] for counts in tasks.values()) for i in range(2))
        print(line(f"{name} {right}/{events}", rest))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="only what is shipped, no baselines")
    parser.add_argument("--record", type=Path, help="a file for the record of each rule, as JSON")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"numpy {np.__version__}; {len(options.folders)} folders")
    every: list[Recorded] = []
    for number, folder in enumerate(options.folders, 1):
        default = list(recordings(folder, without=("update_norm",)))
        if options.quick:
            print(f"\n== folder {number}\n{HEADER}\n{line('shipped', scored(default))}")
            misses(default)
        else:
            table(f"folder {number}", list(recordings(folder)), default)
        every += default
    without_each(every)
    if options.record:
        options.record.write_text(json.dumps(record(every), indent=1, sort_keys=True) + "\n")
    if not options.quick:
        found, said = leave_one_out(every)
        print(f"\n== leave one task out, all folders, what a job sends itself\n{HEADER}")
        print(line("shipped limits", scored(every)))
        print(line("limits chosen without the task", found), *said, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
