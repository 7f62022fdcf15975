"""The input and the result of a rule: types that all rules share, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.batch_columns import BatchColumns, Mask
from snc_service.detect.running import Counts
from snc_service.detect.trends import Doubles, Trends
from snc_service.wire.batch import Floats


@dataclass(frozen=True)
class Told:
    """The part of an event that its rule provides: a message, and the worst layer in numbers."""

    message: str
    layer: str | None = None
    layers: int = 0
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class RuleFinding:
    """The values of one rule: ``values`` [S] to compare with its limit, in the ``judged`` rows.

    ``tell`` renders one row above the limit as text. For a rule that compares each layer with the
    limit, ``columns`` [S, L] holds the values of the layers.
    """

    values: Doubles
    judged: Mask
    tell: Callable[[int, float], Told]
    columns: Floats | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """The input of a rule."""

    signals: BatchColumns
    num_broken: Counts  # [S] values that are not finite
    trends: Trends
    gaps: Counts  # [S] steps since the row before
    # [S] deviations of loss and grad_norm, ratio of lr, rise of the loss, share of skipped steps:
    # see `scalar_rules.scores`.
    scores: Mapping[str, Doubles]


Look: TypeAlias = Callable[[Seen], RuleFinding | None]
Columns: TypeAlias = npt.NDArray[np.floating[Any]]


def largest(
    seen: Seen, columns: Floats | None, say: Callable[[float, float], str]
) -> RuleFinding | None:
    """Return the largest value over layers per row, with the name of its layer."""
    if columns is None or not columns.shape[1]:
        return None

    def tell(row: int, limit: float) -> Told:
        worst = int(np.nanargmax(columns[row]))
        layer, value = seen.signals.layers[worst], float(columns[row, worst])
        layers = int((columns[row] > limit).sum())
        text = f"{layer}: {say(value, limit)}{count(layers)}"
        return Told(text, layer, layers, finite(value), limit)

    values = np.fmax.reduce(columns, axis=1).astype(np.float64)
    return RuleFinding(values, seen.trends.judged, tell, columns)


# numpy gives the interpreter lock up for a partition, even of few values, and may wait for it for
# milliseconds afterwards.
FEW_VALUES: Final = 512


def medians(columns: Floats) -> Doubles:
    """Return the median of each row over what is not NaN; minus infinity in a row without any."""
    num = columns.shape[1]
    if not np.isnan(columns).any():
        middle = (num - 1) // 2, num // 2
        if columns.size <= FEW_VALUES:
            ordered = [sorted(row) for row in columns.tolist()]
            pairs = [row[middle[0]] + row[middle[1]] for row in ordered]
            return np.array(pairs, np.float32).astype(np.float64) / 2
        parted = np.partition(columns, middle, axis=1)
        return ((parted[:, middle[0]] + parted[:, middle[1]]) / 2).astype(np.float64)
    found = np.full(len(columns), -np.inf)
    rows = np.flatnonzero(~np.isnan(columns).all(axis=1))
    found[rows] = np.nanmedian(columns[rows], axis=1)
    return found


def everywhere(seen: Seen) -> Mask:
    """Return a mask of all rows."""
    return np.ones(len(seen.gaps), np.bool_)


def count(layers: int) -> str:
    """Return the number of layers as text, empty for a single one."""
    return f" ({layers} layers)" if layers > 1 else ""


def finite(value: float) -> float | None:
    """Return ``value``, or None if it is not finite."""
    return value if math.isfinite(value) else None


def number(value: float, digits: int = 3) -> str:
    """Return ``value`` as text, with words for NaN and the infinities."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:#.{digits}g}".rstrip(".")


def apart(value: float, limit: float) -> Sequence[str]:
    """Return both numbers with as many digits as are needed to distinguish them."""
    for digits in range(3, 10):  # float32 values differ within 9 digits
        texts = number(value, digits), number(limit, digits)
        if texts[0] != texts[1]:
            break
    return texts


def factor(log_ratio: float) -> str:
    """Return a difference of logarithms as a factor; one beyond the float range is infinite."""
    return number(math.exp(log_ratio) if log_ratio < 700 else math.inf)
