"""Running quantities of a run: the hysteresis of its rules and statistics of its scalars."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

REST_ROWS: Final = 50  # quiet rows after which a rule may raise a new event
LEAST_REST: Final = 5  # of them, for rows that are many steps apart
NEVER: Final = 1_000_000_000  # quiet rows of a rule that has not fired yet
FIRST_ROWS: Final = 20  # rows of a run that set the first lowest loss
PROGRESS: Final = 0.2  # of the first loss, that it must have fallen by
GIVEN_BACK: Final = 0.03  # of all progress of the loss, from which on a rise counts
SKIPS_KEPT: Final = 0.99  # of the weight of a step, one step later

Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fired:
    """The rows in which a rule fires, and those rows at which an event starts."""

    rows: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)

    def at(self, rows: npt.NDArray[np.intp]) -> Fired:
        """Return the same rows, numbered by ``rows``."""
        return Fired(*([int(rows[i]) for i in part] for part in (self.rows, self.edges)))


@dataclass
class Firing:
    """The hysteresis of one rule: consecutive rows above its limit, and rows since it fired."""

    streak: int = 0
    quiet: int = NEVER

    def pass_over(self, rows: int) -> None:
        """Count ``rows`` rows that are not above the limit."""
        if rows:
            quiet = self.quiet + rows
            self.streak, self.quiet = 0, quiet if quiet < NEVER else NEVER

    def go_on(self) -> None:
        """Count a row in which the rule fires without an event."""
        self.streak, self.quiet = self.streak + 1, 0

    def advance(self, above: npt.NDArray[np.bool_], hold: Counts, rest: Counts) -> Fired:
        """Return in which rows of ``above`` [S] the rule fires, and update the counts.

        A rule fires from the ``hold``-th consecutive row above its limit. It starts an event if it
        has not fired for more than ``rest`` rows.
        """
        fired = Fired()
        for row, is_above in enumerate(above.tolist()):
            self.streak = self.streak + 1 if is_above else 0
            if is_above and self.streak >= hold[row]:
                fired.rows.append(row)
                if self.quiet > rest[row]:
                    fired.edges.append(row)
                self.quiet = 0
            else:
                self.quiet = min(NEVER, self.quiet + 1)
        return fired


@dataclass
class Deviation:
    """Running mean and mean absolute deviation of a scalar; an outlier moves both only slightly."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def score(self, value: float, floor: float) -> float:
        """Return how many deviations ``value`` lies above the mean, then update both.

        The factor 1.2533 turns a mean absolute deviation into a standard deviation, for a normal
        distribution. After ten values a single value moves the mean by 5 deviations at most.
        """
        score = (value - self.mean) / max(1.2533 * self.deviation, floor)
        self.count += 1
        share = max(0.03, 1.0 / self.count)
        rest = value - self.mean
        if self.count > 10:
            rest = min(max(rest, -5.0 * self.deviation), 5.0 * self.deviation)
        self.mean += share * rest
        self.deviation += share * (abs(rest) - self.deviation)
        return score


@dataclass
class Rise:
    """The rise of a loss above its lowest value, both smoothed over about 20 rows."""

    smooth: float = 0.0
    lowest: float = 0.0
    count: int = 0

    def advance(self, value: float) -> float:
        """Take in ``value`` and return the rise: 0 at the lowest so far, 0.5 at twice the lowest.

        The rise is relative to the larger of the two in absolute value, so it also holds for
        negative losses. It is never above 2. The first rows set the reference and return 0.
        """
        self.count += 1
        self.smooth += max(0.05, 1.0 / self.count) * (value - self.smooth)
        if self.count <= FIRST_ROWS:
            self.lowest = self.smooth if self.count == 1 else max(self.lowest, self.smooth)
            return 0.0
        self.lowest = min(self.lowest, self.smooth)
        return (self.smooth - self.lowest) / max(abs(self.smooth), abs(self.lowest), 0.05)


@dataclass
class Regain:
    """How far a smoothed loss has come up from its best, in deviations of single rows.

    The deviation is taken from differences of successive rows, so a slow rise does not hide itself.
    """

    smooth: float = 0.0
    best: float = 0.0
    begin: float = 0.0  # the largest of the first rows
    noise: float = 0.0
    newest: float = 0.0
    count: int = 0

    def advance(self, value: float) -> float:
        """Take in ``value`` and return the rise above the best, in deviations.

        0 unless the loss had fallen by a fifth and gives back more than 3 % of that. A loss that
        never fell that far, such as that of two nets against each other, says little by its level.
        An outlier enters with ten deviations at most. The first rows set the reference.
        """
        self.count += 1
        rest, moved = value - self.smooth, abs(value - self.newest)
        if self.count > FIRST_ROWS:
            most = 10 * self.noise
            rest, moved = min(max(rest, -most), most), min(moved, most)
        self.smooth += max(0.05, 1.0 / self.count) * rest
        if self.count > 1:  # 0.886: from a mean absolute difference to a standard deviation
            self.noise += max(0.01, 1.0 / self.count) * (0.886 * moved - self.noise)
        self.newest = value
        if self.count <= FIRST_ROWS:
            self.begin = self.smooth if self.count == 1 else max(self.begin, self.smooth)
            self.best = self.begin
            return 0.0
        self.best = min(self.best, self.smooth)
        progress, back = self.begin - self.best, self.smooth - self.best
        if progress <= max(self.noise, PROGRESS * abs(self.begin)) or back <= GIVEN_BACK * progress:
            return 0.0
        return back / max(self.noise, 1e-3 * abs(self.best), 1e-12)


@dataclass
class LossFall:
    """How far the logarithm of a positive loss lies below its mean of about 50 rows."""

    slow: float = 0.0
    quick: float = 0.0
    count: int = 0

    def advance(self, value: float) -> float:
        """Take in ``value``; return the fall, 0 while there is none or the loss is not positive."""
        if value <= 0:
            return 0.0
        self.count += 1
        log = math.log(value)
        self.slow += max(0.02, 1.0 / self.count) * (log - self.slow)
        self.quick += max(0.2, 1.0 / self.count) * (log - self.quick)
        return max(0.0, self.slow - self.quick)


@dataclass
class SkippedShare:
    """The share of optimizer steps that a loss scaler skipped, of about the last hundred steps."""

    count: float = 0.0
    skipped: float = 0.0
    steps: float = 0.0

    def advance(self, count: float, steps: int, before: int = 0) -> float:
        """Take in the ``count`` of skipped steps so far, ``steps`` counted steps later.

        A job counts from its first skipped step on: none of the ``before`` steps was skipped. If
        there were none, what is counted came before the first row. The count of a job that starts
        again begins at zero: then nothing was skipped.
        """
        new = max(count - self.count, 0.0)
        if not self.steps:
            self.steps = (1 - SKIPS_KEPT**before) / (1 - SKIPS_KEPT)
            new = new if before else 0.0
        self.count = count
        kept = SKIPS_KEPT ** (steps + new)
        self.skipped = kept * self.skipped + new
        self.steps = kept * self.steps + new + steps
        return self.skipped / self.steps
