"""Downsampling: reduce values at steps to min, max, mean and counts in buckets of steps.

Pure arrays. A `Partial` holds mergeable statistics of R rows and B groups of steps: smallest,
largest, sum and number of the finite values, and the number of those that are not finite. Planes
that a query does not need are neither computed nor merged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from snc_service.store.types import Buckets, Floats, Steps
from snc_service.wire import ABSENT, absent

Counts = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]
PLANES: Final = ("low", "high", "total", "finite", "nonfinite")
VALUES_AT_ONCE: Final = 1 << 18  # unreduced: their planes take 20 bytes each
COUNTED: Final = frozenset(("finite", "nonfinite"))  # in every partial
# The plane behind each column of `Buckets`.
SOURCES: Final = {"min": "low", "max": "high", "mean": "total"}
# How the planes of two groups merge, and the value of a plane without any values.
_MERGE: Final[Mapping[str, np.ufunc]] = {
    "low": np.minimum,
    "high": np.maximum,
    "total": np.add,
    "finite": np.add,
    "nonfinite": np.add,
}
_HOLLOW: Final[Mapping[str, Any]] = {
    "low": np.float32(np.inf),
    "high": np.float32(-np.inf),
    "total": np.float64(0),
    "finite": np.int32(0),
    "nonfinite": np.int32(0),
}


def planes_for(columns: Collection[str]) -> frozenset[str]:
    """Return the planes behind some of "mean", "min" and "max"."""
    return COUNTED | {SOURCES[column] for column in columns}


@dataclass(frozen=True)
class Partial:
    """Statistics of R rows in B groups; ``keys`` [B] names the groups and is strictly increasing.

    ``planes`` are some of `PLANES`, each [R, B], always with `COUNTED`. ``low`` and ``high`` are
    +inf and -inf where a group has no finite value.
    """

    keys: Steps
    planes: Mapping[str, npt.NDArray[Any]]

    @property
    def num_rows(self) -> int:
        """Return R."""
        return int(self.planes["finite"].shape[0])

    @property
    def low(self) -> Floats:
        """Return the smallest finite values."""
        return self.planes["low"]

    @property
    def high(self) -> Floats:
        """Return the largest finite values."""
        return self.planes["high"]

    @property
    def total(self) -> npt.NDArray[np.float64]:
        """Return the sums of the finite values."""
        return self.planes["total"]

    @property
    def finite(self) -> Counts:
        """Return the numbers of finite values."""
        return self.planes["finite"]

    @property
    def nonfinite(self) -> Counts:
        """Return the numbers of values that are not finite."""
        return self.planes["nonfinite"]

    @classmethod
    def hollow(cls, keys: Steps, num_rows: int, planes: Collection[str] = PLANES) -> Partial:
        """Return groups without values."""
        shape = (num_rows, len(keys))
        return cls(keys, {name: np.full(shape, _HOLLOW[name]) for name in planes})

    @classmethod
    def empty(cls, num_rows: int, planes: Collection[str] = PLANES) -> Partial:
        """Return a partial without groups."""
        return cls.hollow(np.empty(0, np.int64), num_rows, planes)

    @classmethod
    def of_values(cls, keys: Steps, values: Floats, planes: Collection[str] = PLANES) -> Partial:
        """Return ``values`` [R, N] unreduced, one group per column."""
        finite = np.isfinite(values)
        made: dict[str, npt.NDArray[Any]] = {
            name: np.where(finite, values, _HOLLOW[name])
            for name in ("low", "high", "total")
            if name in planes
        }
        made["finite"] = finite.astype(np.int32)
        made["nonfinite"] = (~absent(values) & ~finite).astype(np.int32)
        return cls(keys, made)

    @classmethod
    def of_groups(cls, keys: Steps, values: Floats, planes: Collection[str] = PLANES) -> Partial:
        """Return ``values`` [R, N] reduced over equal ``keys`` [N], which must not decrease."""
        if len(keys) == 0:
            return cls.of_values(keys, values, planes)
        rows = max(1, VALUES_AT_ONCE // len(keys))
        blocks = [values[at : at + rows] for at in range(0, max(len(values), 1), rows)]
        if len(blocks) > 1:
            return _piled([cls.of_groups(keys, block, planes) for block in blocks])
        if not np.isfinite(values).all():
            return cls.of_values(keys, values, planes).grouped(keys)
        starts = _starts(keys)
        wanted = [name for name in ("low", "high", "total") if name in planes]
        made = _reduced({name: values for name in wanted}, starts)
        sizes = np.diff(starts, append=len(keys)).astype(np.int32)
        shape = (values.shape[0], len(starts))
        made["finite"] = np.broadcast_to(sizes, shape)
        made["nonfinite"] = np.zeros(shape, np.int32)
        return cls(keys[starts], made)

    def grouped(self, keys: Steps) -> Partial:
        """Return the groups with equal new ``keys`` [B] merged; keys must not decrease."""
        if len(keys) == 0:
            return self
        starts = _starts(keys)
        if len(starts) == len(keys):
            return Partial(keys, self.planes)
        return Partial(keys[starts], _reduced(self.planes, starts))

    def with_rows(self, num_rows: int, at: Rows) -> Partial:
        """Return these rows at the places ``at`` of ``num_rows``; all other rows have no values."""
        if len(at) == num_rows and (at == np.arange(num_rows)).all():
            return self
        wide = Partial.hollow(self.keys, num_rows, self.planes)
        for name, plane in self.planes.items():
            wide.planes[name][at] = plane
        return wide

    def rows_taken(self, rows: Rows) -> Partial:
        """Return the given rows in this order; rows beyond the last have no values."""
        if len(rows) == self.num_rows and (rows == np.arange(len(rows))).all():
            return self
        known = rows < self.num_rows
        taken = self._each(lambda _, plane: plane[rows[known]])
        return taken.with_rows(len(rows), np.flatnonzero(known))

    def without_empty(self) -> Partial:
        """Return the groups in which at least one row has a value."""
        return self.only(np.any((self.finite > 0) | (self.nonfinite > 0), axis=0))

    def only(self, kept: npt.NDArray[np.bool_]) -> Partial:
        """Return the groups where ``kept`` [B] is true."""
        return self if kept.all() else self.ordered(np.flatnonzero(kept))

    def ordered(self, at: Rows) -> Partial:
        """Return the groups at the places ``at``, in that order."""
        return Partial(self.keys[at], {name: x[:, at] for name, x in self.planes.items()})

    def _each(self, change: Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]) -> Partial:
        return Partial(self.keys, {name: change(name, x) for name, x in self.planes.items()})


def merged(
    num_rows: int, parts: Sequence[tuple[Rows, Partial]], planes: Collection[str] = PLANES
) -> Partial:
    """Merge partials, each over some of ``num_rows`` rows; groups with the same key become one.

    All have the same ``planes``. Parts over the same groups, usual for the blocks of a metric, are
    stacked first.
    """
    alike: dict[bytes, list[tuple[Rows, Partial]]] = {}
    for rows, part in parts:
        if len(part.keys):
            alike.setdefault(part.keys.tobytes(), []).append((rows, part))
    stacks = [_stacked(num_rows, some) for some in alike.values()]
    if not stacks:
        return Partial.empty(num_rows, planes)
    if len(stacks) == 1:
        return stacks[0]
    keys = np.unique(np.concatenate([stack.keys for stack in stacks]))
    whole = Partial.hollow(keys, num_rows, stacks[0].planes)
    for stack in stacks:
        at = np.searchsorted(keys, stack.keys)
        for name, plane in stack.planes.items():
            whole.planes[name][:, at] = _MERGE[name](whole.planes[name][:, at], plane)
    return whole


def _stacked(num_rows: int, parts: Sequence[tuple[Rows, Partial]]) -> Partial:
    """Merge partials over the same groups."""
    rows, first = parts[0]
    if len(parts) == 1:
        return first.with_rows(num_rows, rows)
    whole = Partial.hollow(first.keys, num_rows, first.planes)
    for rows, part in parts:
        adjacent = len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all()
        at = slice(int(rows[0]), int(rows[-1]) + 1) if adjacent else rows
        for name, plane in part.planes.items():
            whole.planes[name][at] = _MERGE[name](whole.planes[name][at], plane)
    return whole


def _piled(parts: Sequence[Partial]) -> Partial:
    """Return the rows of partials over the same groups one below the other."""
    planes = {
        name: np.concatenate([part.planes[name] for part in parts]) for name in parts[0].planes
    }
    return Partial(parts[0].keys, planes)


def joined(parts: Sequence[Partial]) -> Partial:
    """Return the groups of partials over the same rows one after the other."""
    keys = np.concatenate([part.keys for part in parts])
    planes = {
        name: np.concatenate([part.planes[name] for part in parts], axis=1)
        for name in parts[0].planes
    }
    return Partial(keys, planes)


def _starts(keys: Steps) -> Rows:
    """Return where each group of equal keys begins."""
    return np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))


def _reduced(planes: Mapping[str, npt.NDArray[Any]], starts: Rows) -> dict[str, npt.NDArray[Any]]:
    """Return planes [R, N] reduced over groups of adjacent columns."""
    num = next(iter(planes.values())).shape[1] if planes else 0
    sizes = np.diff(starts, append=num)
    most = int(sizes.max(initial=1))
    if len(sizes) > 2 and most & (most - 1) == 0 and (sizes[1:-1] == most).all():
        edges = (most - int(sizes[0]), most - int(sizes[-1]))
        return {name: _halved(name, plane, most, edges) for name, plane in planes.items()}
    return {
        name: _MERGE[name].reduceat(plane, starts, axis=1, dtype=_HOLLOW[name].dtype)
        for name, plane in planes.items()
    }


def _halved(
    name: str, plane: npt.NDArray[Any], size: int, edges: tuple[int, int]
) -> npt.NDArray[Any]:
    """Reduce groups of ``size`` columns, a power of two, 20 times as fast as ``reduceat``.

    The first and the last group lack ``edges`` columns.
    """
    if any(edges):
        plane = np.pad(plane, ((0, 0), edges), constant_values=_HOLLOW[name])
    while size > 1:
        plane = _MERGE[name](plane[:, ::2], plane[:, 1::2], dtype=_HOLLOW[name].dtype)
        size //= 2
    return plane


def width(num_steps: int, first: int, last: int, points: int) -> int:
    """Return the bucket width: 1 if ``num_steps`` fit in ``points``, else a power of two.

    It is the smallest for which there are at most ``points`` aligned buckets from ``first`` to
    ``last``. It depends on nothing else, so old buckets stay in place until the width doubles.
    """
    if num_steps <= points:
        return 1
    bits = 0
    while (last >> bits) - (first >> bits) + 1 > points:
        bits += 1
    return 1 << bits


def finished(rows: Sequence[str], partial: Partial, bucket_steps: int) -> Buckets:
    """Return the `Buckets`: without empty ones, with ABSENT and NaN as `Buckets` defines.

    ``partial`` is keyed by step // bucket_steps. A column without a plane is NaN throughout.
    """
    partial = partial.without_empty()
    hollow = partial.finite == 0
    unknown = np.where(partial.nonfinite > 0, np.float32(np.nan), ABSENT) if hollow.any() else None

    def told(name: str, plane: npt.NDArray[Any] | None) -> Floats:
        if plane is None:
            return np.broadcast_to(np.float32(np.nan), hollow.shape)
        if name == "total":
            plane = (plane / np.maximum(partial.finite, 1)).astype(np.float32)
        return plane if unknown is None else np.where(hollow, unknown, plane)

    columns = {column: told(x, partial.planes.get(x)) for column, x in SOURCES.items()}
    return Buckets(
        rows=tuple(rows),
        steps=partial.keys * bucket_steps,
        nonfinite=partial.nonfinite,
        bucket_steps=bucket_steps,
        **columns,
    )
