"""What alarms are worth: recall, lead and false alarms, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.backtest.labels import Label
from snc_service.backtest.score import GRACE, episodes

Mask = npt.NDArray[np.bool_]
DRAWS = 1_000


@dataclass(frozen=True)
class Outcome:
    """Of one run, by the protocol of `snc_service.backtest.score`; ``lead`` None: missed."""

    cluster: str  # runs of one scenario resemble each other and are drawn together
    false_alarms: int
    healthy_rows: int
    symptom: bool
    gradual: bool
    lead: int | None


def outcome(label: Label, cluster: str, active: Mask) -> Outcome:
    rows = np.flatnonzero(active).tolist()
    healthy = len(active) if label.healthy else min(label.cause, len(active))
    false = sum(row < healthy for row in episodes(rows))
    lead = None
    if label.symptom is not None:
        hit = next((r for r in rows if label.cause <= r <= label.symptom + GRACE), None)
        lead = None if hit is None else label.symptom - hit
    symptom = label.symptom is not None
    return Outcome(cluster, false, healthy, symptom, symptom and label.is_gradual, lead)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    sick = [each for each in outcomes if each.symptom]
    slow = [each for each in sick if each.gradual]
    leads = [each.lead for each in slow if each.lead is not None]
    return {
        "recall": share(sum(each.lead is not None for each in sick), len(sick)),
        "gradual": share(len(leads), len(slow)),
        "lead>=5": share(sum(lead >= 5 for lead in leads), len(slow)),
        "median lead": float(np.median(leads)) if leads else float("nan"),
        "false/10k": 1e4
        * share(sum(e.false_alarms for e in outcomes), sum(e.healthy_rows for e in outcomes)),
    }


def intervals(outcomes: Sequence[Outcome], seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the 5 % and 95 % quantiles of each figure over draws of scenarios with return."""
    by_cluster: dict[str, list[Outcome]] = {}
    for each in outcomes:
        by_cluster.setdefault(each.cluster, []).append(each)
    clusters, rng = list(by_cluster.values()), np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        picks = rng.integers(len(clusters), size=len(clusters))
        for name, value in figures([e for i in picks for e in clusters[i]]).items():
            drawn.setdefault(name, []).append(value)
    with np.errstate(all="ignore"):
        return {
            name: (float(np.nanquantile(values, 0.05)), float(np.nanquantile(values, 0.95)))
            for name, values in drawn.items()
        }


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a row of the table: each figure with its 90 % interval."""
    found, bounds = figures(outcomes), intervals(outcomes)
    cells = []
    for key, value in found.items():
        low, high = bounds[key]
        digits = 0 if key == "median lead" else 2
        cells.append(f"{value:6.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".ljust(21))
    return f"{name:34}" + "".join(cells)


HEADER = " " * 34 + "".join(
    name.ljust(21) for name in ("recall", "gradual recall", "lead >= 5", "median lead", "false/10k")
)


def share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
