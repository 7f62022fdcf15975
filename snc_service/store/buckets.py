"""Downsampling: values on steps become min, max, mean and counts on buckets of steps.

Pure arrays. A `Partial` says of R rows and B groups of steps what is needed to merge it with any
other and to finish it as a `Buckets`: smallest, largest, sum and number of the finite values, and
the number of those that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.store.protocol import Buckets, Floats, Steps
from snc_service.wire import ABSENT, absent

Counts = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]
PLANES = ("low", "high", "total", "finite", "nonfinite")


@dataclass(frozen=True)
class Partial:
    """What is known of R rows in B groups; ``keys`` [B] names the groups and grows strictly.

    ``low`` and ``high`` are +inf and -inf where a group has no finite value.
    """

    keys: Steps
    low: Floats
    high: Floats
    total: npt.NDArray[np.float64]
    finite: Counts
    nonfinite: Counts

    @classmethod
    def hollow(cls, keys: Steps, num_rows: int) -> Partial:
        """Return groups without values."""
        shape = (num_rows, len(keys))
        return cls(
            keys,
            np.full(shape, np.inf, np.float32),
            np.full(shape, -np.inf, np.float32),
            np.zeros(shape),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )

    @classmethod
    def empty(cls, num_rows: int) -> Partial:
        """Return a partial without groups."""
        return cls.hollow(np.empty(0, np.int64), num_rows)

    @classmethod
    def of_values(cls, keys: Steps, values: Floats) -> Partial:
        """Return ``values`` [R, N] as they are, one group per column."""
        measured = ~absent(values)
        finite = np.isfinite(values)
        return cls(
            keys,
            np.where(finite, values, np.float32(np.inf)),
            np.where(finite, values, np.float32(-np.inf)),
            np.where(finite, values, 0.0).astype(np.float64),
            finite.astype(np.int32),
            (measured & ~finite).astype(np.int32),
        )

    @classmethod
    def of_groups(cls, keys: Steps, values: Floats) -> Partial:
        """Return ``values`` [R, N] reduced over equal ``keys`` [N], which must not decrease."""
        if len(keys) == 0 or not np.isfinite(values).all():
            return cls.of_values(keys, values).grouped(keys)
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        sizes = np.diff(starts, append=len(keys)).astype(np.int32)
        shape = (values.shape[0], len(starts))
        return cls(
            keys[starts],
            np.minimum.reduceat(values, starts, axis=1),
            np.maximum.reduceat(values, starts, axis=1),
            np.add.reduceat(values, starts, axis=1, dtype=np.float64),
            np.broadcast_to(sizes, shape),
            np.zeros(shape, np.int32),
        )

    def grouped(self, keys: Steps) -> Partial:
        """Return the groups merged whose new ``keys`` [B] are equal; they must not decrease."""
        if len(keys) == 0:
            return self
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        if len(starts) == len(keys):
            return Partial(keys, self.low, self.high, self.total, self.finite, self.nonfinite)
        return Partial(
            keys[starts],
            np.minimum.reduceat(self.low, starts, axis=1),
            np.maximum.reduceat(self.high, starts, axis=1),
            np.add.reduceat(self.total, starts, axis=1),
            np.add.reduceat(self.finite, starts, axis=1),
            np.add.reduceat(self.nonfinite, starts, axis=1),
        )

    def rows_merged(self, starts: Rows) -> Partial:
        """Return groups of adjacent rows merged; ``starts`` are the first rows of the groups."""
        return Partial(
            self.keys,
            np.minimum.reduceat(self.low, starts, axis=0),
            np.maximum.reduceat(self.high, starts, axis=0),
            np.add.reduceat(self.total, starts, axis=0),
            np.add.reduceat(self.finite, starts, axis=0),
            np.add.reduceat(self.nonfinite, starts, axis=0),
        )

    def with_rows(self, num_rows: int, at: Rows) -> Partial:
        """Return these rows at the places ``at`` of ``num_rows``; the others have no values."""
        if len(at) == num_rows and (at == np.arange(num_rows)).all():
            return self
        wide = Partial.hollow(self.keys, num_rows)
        for name in PLANES:
            getattr(wide, name)[at] = getattr(self, name)
        return wide

    def rows_taken(self, rows: Rows) -> Partial:
        """Return some rows, in the order given; rows beyond the last have no values."""
        known = rows < self.low.shape[0]
        planes = {name: getattr(self, name)[rows[known]] for name in PLANES}
        return Partial(self.keys, **planes).with_rows(len(rows), np.flatnonzero(known))

    def without_empty(self) -> Partial:
        """Return the groups in which at least one row has a value."""
        return self.only(np.any(self.finite + self.nonfinite, axis=0))

    def only(self, kept: npt.NDArray[np.bool_]) -> Partial:
        """Return the groups where ``kept`` [B] is true."""
        return self if kept.all() else self.ordered(np.flatnonzero(kept))

    def ordered(self, at: Rows) -> Partial:
        """Return the groups at the places ``at``, in that order."""
        planes = {name: getattr(self, name)[:, at] for name in PLANES}
        return Partial(self.keys[at], **planes)


def merged(num_rows: int, parts: Sequence[tuple[Rows, Partial]]) -> Partial:
    """Merge partials, each over some of ``num_rows`` rows; groups with the same key become one."""
    parts = [(rows, part) for rows, part in parts if len(part.keys)]
    if not parts:
        return Partial.empty(num_rows)
    if len(parts) == 1:
        rows, part = parts[0]
        return part.with_rows(num_rows, rows)
    keys = np.unique(np.concatenate([part.keys for _, part in parts]))
    whole = Partial.hollow(keys, num_rows)
    for rows, part in parts:
        at = np.ix_(rows, np.searchsorted(keys, part.keys))
        whole.low[at] = np.minimum(whole.low[at], part.low)
        whole.high[at] = np.maximum(whole.high[at], part.high)
        for name in ("total", "finite", "nonfinite"):
            getattr(whole, name)[at] += getattr(part, name)
    return whole


def joined(parts: Sequence[Partial]) -> Partial:
    """Return the groups of partials over the same rows one after the other."""
    keys = np.concatenate([part.keys for part in parts])
    planes = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in PLANES
    }
    return Partial(keys, **planes)


def width(num_steps: int, first: int, last: int, points: int) -> int:
    """Return the bucket width: 1 if ``num_steps`` fit in ``points``, else a power of two.

    It is the smallest for which the aligned buckets from ``first`` to ``last`` are at most
    ``points``; as it depends on nothing else, growing history moves no old bucket until it doubles.
    """
    if num_steps <= points:
        return 1
    bits = 0
    while (last >> bits) - (first >> bits) + 1 > points:
        bits += 1
    return 1 << bits


def finished(rows: Sequence[str], partial: Partial, bucket_steps: int) -> Buckets:
    """Return the answer: empty buckets left out, ABSENT and NaN where `Buckets` says so.

    ``partial`` is keyed by step // bucket_steps.
    """
    partial = partial.without_empty()
    hollow = partial.finite == 0
    nan = np.where(partial.nonfinite > 0, np.float32(np.nan), ABSENT)
    mean = partial.total / np.maximum(partial.finite, 1)
    return Buckets(
        rows=tuple(rows),
        steps=partial.keys * bucket_steps,
        mean=np.where(hollow, nan, mean.astype(np.float32)),
        min=np.where(hollow, nan, partial.low),
        max=np.where(hollow, nan, partial.high),
        nonfinite=partial.nonfinite,
        bucket_steps=bucket_steps,
    )
