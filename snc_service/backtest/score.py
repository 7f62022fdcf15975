"""The scoring protocol: recall, lead and false alarms of rules over labelled runs.

An alarm is active in every row in which some rule fires. An episode opens at an active row that
comes more than 50 rows after the last active row of any rule. It is a false alarm if it opens in a
healthy run, or before the cause. A faulty run with a symptom is detected if an alarm is active in
any row from the cause to 5 rows after the symptom; its lead is the number of rows from the first
such row to the symptom. A fault is gradual if its symptom comes 20 rows after its cause or later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from snc_service.backtest.labels import Label

QUIET = 50  # rows without alarm that end an episode
GRACE = 5  # rows after the symptom in which an alarm still counts as detection
LATE = 150  # rows from this one on count as late


@dataclass
class Score:
    """Counts over the runs given to `add`; a share is NaN if its denominator is 0."""

    healthy_rows: int = 0
    late_healthy_rows: int = 0
    false_alarms: int = 0
    late_false_alarms: int = 0
    symptoms: int = 0
    gradual: int = 0
    leads: list[int] = field(default_factory=list)  # of the detected runs
    gradual_leads: list[int] = field(default_factory=list)
    noisy: Counter[str] = field(default_factory=Counter)  # false alarms by run
    missed: list[str] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)

    def add(self, label: Label, active: Iterable[int], num_rows: int) -> None:
        """Count one run of ``num_rows`` training rows, with alarms in the rows ``active``."""
        if label.excluded:
            self.excluded[label.run] = label.excluded
            return
        rows = sorted(set(active))
        healthy = num_rows if label.healthy else min(label.cause, num_rows)
        alarms = [row for row in episodes(rows) if row < healthy]
        self.healthy_rows += healthy
        self.late_healthy_rows += max(0, healthy - LATE)
        self.false_alarms += len(alarms)
        self.late_false_alarms += sum(row >= LATE for row in alarms)
        if alarms:
            self.noisy[label.run] += len(alarms)
        if label.symptom is not None:
            self._detect(label, rows, label.symptom)

    def _detect(self, label: Label, rows: Sequence[int], symptom: int) -> None:
        self.symptoms += 1
        self.gradual += label.is_gradual
        hit = next((row for row in rows if label.cause <= row <= symptom + GRACE), None)
        if hit is None:
            self.missed.append(label.run)
            return
        self.leads.append(symptom - hit)
        if label.is_gradual:
            self.gradual_leads.append(symptom - hit)

    @property
    def recall(self) -> float:
        """Return the share of runs with a symptom that were detected."""
        return _share(len(self.leads), self.symptoms)

    @property
    def gradual_recall(self) -> float:
        """Return the recall of gradual faults."""
        return _share(len(self.gradual_leads), self.gradual)

    def lead_share(self, least: int) -> float:
        """Return the share of gradual faults detected ``least`` rows before the symptom or more."""
        return _share(sum(lead >= least for lead in self.gradual_leads), self.gradual)

    @property
    def median_lead(self) -> float:
        """Return the median lead of the gradual faults that were detected, in rows."""
        return float(median(self.gradual_leads)) if self.gradual_leads else float("nan")

    @property
    def false_rate(self) -> float:
        """Return false alarms per 10,000 healthy rows."""
        return 1e4 * _share(self.false_alarms, self.healthy_rows)

    @property
    def late_false_rate(self) -> float:
        """Return the false rate from row 150 on."""
        return 1e4 * _share(self.late_false_alarms, self.late_healthy_rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and shares for JSON; null for a share without a denominator."""
        shares = {
            "recall": self.recall,
            "gradual_recall": self.gradual_recall,
            "gradual_lead_5": self.lead_share(5),
            "median_lead": self.median_lead,
            "false_alarms_per_10k": self.false_rate,
            "false_alarms_per_10k_from_150": self.late_false_rate,
        }
        return {
            **{name: value if value == value else None for name, value in shares.items()},
            "symptoms": self.symptoms,
            "detected": len(self.leads),
            "gradual": self.gradual,
            "gradual_detected": len(self.gradual_leads),
            "false_alarms": self.false_alarms,
            "healthy_rows": self.healthy_rows,
            "missed": self.missed,
            "noisy": dict(self.noisy),
            "excluded": self.excluded,
        }


def episodes(active: Sequence[int]) -> list[int]:
    """Return the rows at which an episode opens; ``active`` is increasing."""
    opened: list[int] = []
    before: int | None = None
    for row in active:
        if before is None or row - before > QUIET:
            opened.append(row)
        before = row
    return opened


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
