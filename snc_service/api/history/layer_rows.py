"""Which layers a picture or a table shows, and which of them share a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from snc_service.store.types import Buckets, Floats

MOST_WILDCARDS: Final = 8  # of a pattern
_EXPERT = re.compile(r"((?:^|\.)(?:\w*experts?|expert_\w+)\.)\d+(?=\.|$)")


def _bounded(pattern: str) -> str:
    pattern = re.sub(r"\*+", "*", pattern)
    if pattern.count("*") > MOST_WILDCARDS:
        raise ValueError(f"must hold at most {MOST_WILDCARDS} stars, got {pattern[:80]!r}")
    return pattern


LayerPattern = Annotated[
    str,
    AfterValidator(_bounded),
    Field(
        max_length=256,
        description="Only layers that match: a glob, or a part of the name in any case.",
    ),
]


def matching(names: Sequence[str], pattern: str) -> list[int]:
    """Return which of ``names`` match a glob (``* ? [``), or hold a text in any case."""
    if not pattern:
        return list(range(len(names)))
    if set(pattern) & set("*?["):
        return [i for i, name in enumerate(names) if fnmatchcase(name, pattern)]
    wanted = pattern.casefold()
    return [i for i, name in enumerate(names) if wanted in name.casefold()]


@dataclass(frozen=True)
class Row:
    """A row of a heatmap: the layers ``names`` at these places, as units ``first`` to ``last``."""

    label: str
    places: tuple[int, ...]
    first: int
    last: int


def units(names: Sequence[str], *, experts: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Return (label, places) of what has a row of its own: a layer, or one layer of all experts.

    The label of experts has ``*`` for their number, so it is the pattern that matches them.
    """
    if not experts:
        return [(name, (place,)) for place, name in enumerate(names)]
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(_EXPERT.sub(r"\1*", name), []).append(place)
    return [
        (label if len(places) > 1 else names[places[0]], tuple(places))
        for label, places in groups.items()
    ]


def rows(
    found: Sequence[tuple[str, tuple[int, ...]]], first: int, last: int, most: int
) -> list[Row]:
    """Return at most ``most`` rows for the units from ``first`` to ``last``."""
    shown = found[first : last + 1]
    each = max(1, -(-len(shown) // most))
    made = []
    for begin in range(0, len(shown), each):
        part = shown[begin : begin + each]
        label = part[0][0]
        if len(part) > 1:
            label = f"{label} \N{HORIZONTAL ELLIPSIS} {part[-1][0]}"
        places = tuple(place for _, those in part for place in those)
        made.append(Row(label, places, first + begin, first + begin + len(part) - 1))
    return made


def merged(buckets: Buckets, made: Sequence[Row]) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Return the largest value [rows, steps] and how many are not finite, of each row."""
    if not made:
        return buckets.max[:0], buckets.nonfinite[:0]
    order = np.array([place for row in made for place in row.places], np.intp)
    starts = np.cumsum([0, *(len(row.places) for row in made[:-1])])
    values = np.fmax.reduceat(buckets.max[order], starts, axis=0)
    return values, np.add.reduceat(buckets.nonfinite[order], starts, axis=0)


def worst_members(buckets: Buckets, made: Sequence[Row]) -> list[int]:
    """Return the place of the worst layer of each row: not finite, else with the largest value."""
    if not made:
        return []
    values = buckets.max
    peak = np.where(np.isnan(values), -np.inf, values).max(axis=1, initial=-np.inf)
    peak[buckets.nonfinite.any(axis=1)] = np.inf
    return [row.places[int(np.argmax(peak[list(row.places)]))] for row in made]
