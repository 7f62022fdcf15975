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
    def empty(cls, num_rows: int) -> Partial:
        """Return a partial without groups."""
        floats = np.empty((num_rows, 0), np.float32)
        counts = np.empty((num_rows, 0), np.int32)
        return cls(np.empty(0, np.int64), floats, floats, floats.astype(np.float64), counts, counts)

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

    def rows_merged(self, starts: npt.NDArray[np.intp]) -> Partial:
        """Return groups of adjacent rows merged; ``starts`` are the first rows of the groups."""
        return Partial(
            self.keys,
            np.minimum.reduceat(self.low, starts, axis=0),
            np.maximum.reduceat(self.high, starts, axis=0),
            np.add.reduceat(self.total, starts, axis=0),
            np.add.reduceat(self.finite, starts, axis=0),
            np.add.reduceat(self.nonfinite, starts, axis=0),
        )

    def without_empty(self) -> Partial:
        """Return the groups in which at least one row has a value."""
        return self.only(np.any(self.finite + self.nonfinite, axis=0))

    def only(self, kept: npt.NDArray[np.bool_]) -> Partial:
        """Return the groups where ``kept`` [B] is true."""
        if kept.all():
            return self
        return Partial(
            self.keys[kept],
            self.low[:, kept],
            self.high[:, kept],
            self.total[:, kept],
            self.finite[:, kept],
            self.nonfinite[:, kept],
        )


def merged(num_rows: int, parts: Sequence[Partial]) -> Partial:
    """Merge partials over the same rows; groups with the same key become one."""
    parts = [part for part in parts if len(part.keys)]
    if not parts:
        return Partial.empty(num_rows)
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")

    def joined(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts], axis=1)[:, order]

    whole = Partial(
        keys[order],
        *(joined(name) for name in ("low", "high", "total", "finite", "nonfinite")),  # type: ignore[arg-type] # planes in the order of the fields
    )
    return whole.grouped(whole.keys)


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
