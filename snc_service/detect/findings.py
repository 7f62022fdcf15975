"""What a rule sees and says: the parts that all of them share, and how numbers are put in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.batch_columns import BatchColumns, Mask
from snc_service.detect.running import Counts
from snc_service.detect.trends import Doubles, Trends
from snc_service.wire.batch import Floats


@dataclass(frozen=True)
class Told:
    """The part of an event that only its rule knows: a sentence, and the worst layer in numbers."""

    message: str
    layer: str | None = None
    layers: int = 0
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class RuleFinding:
    """What a rule saw: ``values`` [S] to compare with its limit, in the rows that are ``judged``.

    ``tell`` puts one row, which exceeded the limit, into words. Where every layer is compared with
    the limit by itself, ``columns`` [S, L] holds what of each.
    """

    values: Doubles
    judged: Mask
    tell: Callable[[int, float], Told]
    columns: Floats | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """Everything that a rule may look at."""

    signals: BatchColumns
    num_broken: Counts  # [S] values that are not finite
    trends: Trends
    gaps: Counts  # [S] steps since the row before
    # [S] how unusual loss, grad_norm and lr are, and how far the loss has risen: `course.scores`.
    scores: Mapping[str, Doubles]


Look: TypeAlias = Callable[[Seen], RuleFinding | None]
Columns: TypeAlias = npt.NDArray[np.floating[Any]]


def largest(
    seen: Seen, columns: Floats | None, say: Callable[[float, float], str]
) -> RuleFinding | None:
    """Compare the largest value over layers, and name the layer that has it."""
    if columns is None or not columns.shape[1]:
        return None

    def tell(row: int, limit: float) -> Told:
        worst = int(np.nanargmax(columns[row]))
        layer, value = seen.signals.layers[worst], float(columns[row, worst])
        layers = int((columns[row] > limit).sum())
        return Told(f"{layer}: {say(value, limit)}{count(layers)}", layer, layers, value, limit)

    values = np.fmax.reduce(columns, axis=1).astype(np.float64)
    return RuleFinding(values, seen.trends.judged, tell, columns)


def everywhere(seen: Seen) -> Mask:
    """Return that every row is judged."""
    return np.ones(len(seen.gaps), np.bool_)


def count(layers: int) -> str:
    """Return how many layers, where it is more than the one that is named."""
    return f" ({layers} layers)" if layers > 1 else ""


def finite(value: float) -> float | None:
    """Return what a number can say of ``value``."""
    return value if math.isfinite(value) else None


def number(value: float, digits: int = 3) -> str:
    """Return ``value`` in words."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:#.{digits}g}".rstrip(".")


def apart(value: float, limit: float) -> Sequence[str]:
    """Return both numbers with as many digits as it takes to tell them apart."""
    for digits in range(3, 10):  # float32 values differ within 9 digits
        texts = number(value, digits), number(limit, digits)
        if texts[0] != texts[1]:
            break
    return texts


def factor(log_ratio: float) -> str:
    """Return a difference of logarithms as a factor; one beyond all floats is infinite."""
    return number(math.exp(log_ratio) if log_ratio < 700 else math.inf)
