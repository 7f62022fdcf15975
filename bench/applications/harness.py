"""Trainings over seeds, intervals, interleaved CPU time and tables: what all studies share."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from scipy.stats import t as student
from variants import Variant

from snc_client import SNCallback

POINTS = 12  # of a curve
WARM, ROUNDS = 5, 60  # steps of each variant when CPU time is measured
PROBES = 10  # the same, for a projection


class Training(Protocol):
    """One network, or a pair, in training."""

    callback: SNCallback | None

    def step(self) -> None:
        """Take one step of every optimizer."""

    def sigma(self) -> float:
        """Return the largest spectral norm among the layers that variants hold."""

    def results(self) -> dict[str, float]:
        """Return the figures of the table, when the training is over."""


@dataclass(frozen=True)
class Column:
    """One figure of a table. ``share``: printed as a count of seeds."""

    key: str
    title: str
    digits: int = 2
    share: bool = False


BINDS = Column("binds", "binds")


@dataclass(frozen=True)
class Study:
    """One comparison: all variants with the same seeds and steps."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    steps: int
    begin: Callable[[Variant, int], Training]
    columns: tuple[Column, ...]
    drawn: tuple[str, ...]  # the columns of its figure
    first: int = 0  # steps before the first update, on top of ``steps``


@dataclass
class Outcome:
    """One variant: a figure of each seed by column, sigma of each seed by point."""

    variant: str
    kind: str
    values: dict[str, list[float]] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    sigma: list[list[float]] = field(default_factory=list)
    cost: float = math.nan  # CPU time of a step over that of the first variant


class Binding:
    """How hard thresholds bind: how often the layer that is written most often is written."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.steps = 0

    def look(self, callback: SNCallback) -> None:
        self.steps += bool(callback.latest)
        for layer, values in callback.latest.items():
            if values["scale"] not in (None, 1.0):
                self.written[layer] = self.written.get(layer, 0) + 1

    @property
    def share(self) -> float:
        return max(self.written.values(), default=0) / self.steps if self.steps else math.nan


def one(study: Study, variant: Variant, seed: int, steps: int) -> Outcome:
    """Train one seed of one variant."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    training = study.begin(variant, seed)
    outcome = Outcome(variant.name, variant.kind)
    curve, binding = [], Binding()
    for step in range(steps):
        if step % max(1, steps // POINTS) == 0:
            outcome.steps.append(step)
            curve.append(training.sigma())
        training.step()
        if training.callback is not None:
            binding.look(training.callback)
    outcome.steps.append(steps)
    outcome.sigma.append([*curve, training.sigma()])
    values = {**training.results(), BINDS.key: binding.share}
    outcome.values = {key: [value] for key, value in values.items()}
    return outcome


def trained(study: Study, seeds: Sequence[int], steps: int, jobs: int) -> Iterator[Outcome]:
    """Yield one outcome per variant, in the order of the study."""
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [
            [pool.submit(one, study, variant, seed, steps) for seed in seeds]
            for variant in study.variants
        ]
        for each in waiting:
            outcomes = [future.result() for future in each]
            first = outcomes[0]
            for more in outcomes[1:]:
                first.sigma += more.sigma
                for key, values in more.values.items():
                    first.values[key] += values
            yield first


def step_seconds(study: Study, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the CPU time of a step of each variant, with the steps of all in shuffled turns.

    Means, because a variant may act at every fifth step only.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    order = random.Random(0)
    running = {variant.name: study.begin(variant, 0) for variant in study.variants}
    for training in running.values():
        for _ in range(study.first):
            training.step()
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(WARM + rounds):
        for name in order.sample(list(running), len(running)):
            start = time.process_time()
            running[name].step()
            if turn >= WARM:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.fmean(each) for name, each in seconds.items()}


def projected(study: Study, steps: int, seeds: int) -> tuple[float, float]:
    """Return the CPU times of a study's timing and of its trainings, from a few steps of each.

    The figures at the end are timed for the first variant, and count as much for the others.
    """
    each = sum(step_seconds(study, PROBES).values())
    training = study.begin(study.variants[0], 0)
    training.step()
    start = time.process_time()
    training.results()
    end = (time.process_time() - start) * len(study.variants)
    return each * (WARM + ROUNDS), seeds * (each * steps + end)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half the width of its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, 0.0
    factor = float(student.ppf(0.975, len(values) - 1))
    return mean, factor * statistics.stdev(values) / math.sqrt(len(values))


def table(study: Study, outcomes: Sequence[Outcome]) -> str:
    """Return the table of a study, for a log."""
    width = max(len(outcome.variant) for outcome in outcomes) + 2
    columns = (*study.columns, BINDS)
    lines = ["".ljust(width) + "".join(f"{c.title:>18}" for c in columns) + f"{'CPU':>8}"]
    for outcome in outcomes:
        cells = "".join(f"{cell(c, outcome.values[c.key]):>18}" for c in columns)
        lines.append(f"{outcome.variant.ljust(width)}{cells}{outcome.cost:8.2f}")
    return "\n".join(lines)


def cell(column: Column, values: Sequence[float]) -> str:
    if column.share:
        return f"{sum(values):.0f} of {len(values)}"
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    if not abs(mean) < 1e4:
        return f"{mean:.1e}"
    return f"{mean:.{column.digits}f} ± {half:.{column.digits}f}"


def save(folder: Path, study: Study, outcomes: Sequence[Outcome]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(outcome) for outcome in outcomes])
    (folder / f"{study.name}.json").write_text(text)


def load(folder: Path, study: Study) -> list[Outcome]:
    return [Outcome(**each) for each in json.loads((folder / f"{study.name}.json").read_text())]
