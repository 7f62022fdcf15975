"""Labelled runs, with what each rule compared with its limit in each row."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snc_service.backtest.files import read_run
from snc_service.backtest.labels import Label, read_labels
from snc_service.detect.memory import Memory
from snc_service.detect.rules import judge
from snc_service.store.types import RunRows
from snc_service.wire.rule_settings import SHIPPED, RuleSetting

Doubles = npt.NDArray[np.float64]
MOVING = frozenset(("td", "dqn", "gan", "ac"))  # whose jobs declare it, as their adapters do
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Recorded:
    """One run: ``values`` and ``firing`` per rule, [T] each; row t is step t + 1."""

    label: Label
    task: str
    scenario: str
    values: Mapping[str, Doubles]
    firing: Mapping[str, Mask]
    signals: Mapping[str, npt.NDArray[Any]]  # of the file, for the baselines

    @property
    def num_rows(self) -> int:
        return len(self.signals["sigma"])


def recordings(folder: Path, without: Collection[str] = ()) -> Iterator[Recorded]:
    """Yield the labelled runs of a folder, judged by the shipped rules as a live run is."""
    with (folder / "labels.csv").open(newline="") as lines:
        labels = read_labels(lines)
    with (folder / "labels.csv").open(newline="") as lines:
        kinds = {row["id"]: (row["task"], row["scenario"]) for row in csv.DictReader(lines)}
    for label in labels.values():
        if not label.excluded:
            yield recorded(folder, label, *kinds[label.run], without)


def recorded(
    folder: Path, label: Label, task: str, scenario: str, without: Collection[str]
) -> Recorded:
    with np.load(folder / f"{label.run}.npz", allow_pickle=False) as file:
        signals = {key: file[key] for key in ("sigma", "loss", "ggrad", "gnorm", "fro", "unorm")}
    num_rows = len(signals["sigma"])
    values = {name: np.full(num_rows, -np.inf) for name in SHIPPED}
    firing = {name: np.zeros(num_rows, np.bool_) for name in SHIPPED}
    memory = Memory()
    for rows in read_run(folder / f"{label.run}.npz", 10, without=without):
        rows = declared(rows) if task in MOVING else rows
        verdict, places = judge(memory, rows), np.array(rows.batch.steps) - 1
        if places[0] < 0:
            continue  # the row before the training
        for name, finding in verdict.findings.items():
            there = np.where(finding.judged, finding.values, np.nan)
            values[name][places] = np.where(np.isnan(there), -np.inf, there)
        for name, steps in verdict.firing.items():
            firing[name][np.array(steps) - 1] = True
    return Recorded(label, task, scenario, values, firing, signals)


def declared(rows: RunRows) -> RunRows:
    """Return the rows as a job sends them that has said that the target of its loss moves."""
    batch = rows.batch
    said = np.ones((1, len(batch.steps)), np.float32)
    more = replace(
        batch,
        scalars=(*batch.scalars, "moving_target"),
        scalar_values=np.concatenate((batch.scalar_values.reshape(-1, len(batch.steps)), said)),
    )
    return replace(rows, batch=more)


def fires(run: Recorded, name: str, setting: RuleSetting) -> Mask:
    """Return the rows in which a rule would fire with another limit; rows one step apart."""
    above = run.values[name] > setting.limit
    above[: setting.armed] = False
    held = above.copy()
    for back in range(1, setting.for_rows):
        held[back:] &= above[:-back]
        held[:back] = False
    return held


def any_of(masks: Iterable[Mask], num_rows: int) -> Mask:
    return np.logical_or.reduce([np.zeros(num_rows, np.bool_), *masks])
