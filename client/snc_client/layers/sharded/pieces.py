"""From a shard of a stored tensor to the pieces of one matrix in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snc_client.layers.view import View
from snc_client.operators.sharded import Box, Rectangle, Shard, ShardedMatrix, ShardError


@dataclass(frozen=True)
class _Axis:
    """One dimension of a stored tensor and the indices of it that a view takes."""

    size: int
    chosen: range
    kept: bool
    """Whether it is a dimension of the view: an index takes it away."""

    def within(self, start: int, length: int) -> tuple[slice, int]:
        """Return which of [start, start + length) the view takes, and their place in the view."""
        first, step = self.chosen.start, self.chosen.step
        low = min(max(-((first - start) // step), 0), len(self.chosen))
        high = min(max(-((first - start - length) // step), low), len(self.chosen))
        begin = first + low * step - start
        return slice(begin, begin + max(high - low, 0) * step, step) if high > low else slice(
            0
        ), low


def matrix_of(shard: Shard, view: View, shape: tuple[int, int]) -> ShardedMatrix:
    """Return the matrix (m, n) of ``shape`` that ``view`` sees in the tensor.

    Raises `ShardError` where its part here is no rectangle of the matrix.
    """
    picks = view.pick if isinstance(view.pick, tuple) else (view.pick,)
    axes = [
        _axis(size, pick) for size, pick in zip(shard.shape, _padded(picks, shard), strict=True)
    ]
    stored = [d for d, axis in enumerate(axes) if axis.kept]
    turned = view.lay is Tensor.t
    pieces = [_piece(box, axes, turned) for box in shard.boxes]
    side, across = _side(shard, stored)
    return ShardedMatrix(
        shape=shape,
        pieces=tuple(piece for piece in pieces if piece is not None),
        group=shard.group,
        axis=1 - side if turned else side,
        counts=shard.counts,
        across=shard.across if across else None,
        torn=_torn(shard, axes, stored[0]),
    )


def _padded(picks: Sequence[Any], shard: Shard) -> list[Any]:
    given = [] if picks == (...,) else list(picks)
    return [*given, *[slice(None)] * (len(shard.shape) - len(given))]


def _axis(size: int, pick: slice | int) -> _Axis:
    if isinstance(pick, int):
        return _Axis(size, range(pick, pick + 1), kept=False)
    return _Axis(size, range(*pick.indices(size)), kept=True)


def _piece(box: Box, axes: Sequence[_Axis], turned: bool) -> Rectangle | None:
    """Return a box's share of the matrix, which may be empty; None if it is of another matrix."""
    taken = [
        axis.within(start, length)
        for axis, start, length in zip(axes, box.start, box.local.shape, strict=True)
    ]
    local = box.local[tuple(here for here, _ in taken)]
    if any(not axis.kept and not local.shape[d] for d, axis in enumerate(axes)):
        return None
    kept = [d for d, axis in enumerate(axes) if axis.kept]
    for d in reversed([d for d, axis in enumerate(axes) if not axis.kept]):
        local = local.squeeze(d)
    starts = [taken[d][1] for d in kept]
    sizes = [len(axes[d].chosen) for d in kept]
    if local.ndim > 2:
        _check_interval(local.shape[1:], sizes[1:], rows=local.shape[0])
        starts = [starts[0], sum(s * math.prod(sizes[2 + i :]) for i, s in enumerate(starts[1:]))]
        try:
            local = local.view(local.shape[0], math.prod(local.shape[1:]))
        except RuntimeError:
            raise ShardError("a shard whose memory is not in the order of its dimensions") from None
    piece = Rectangle(local, *starts)
    return piece.turned() if turned else piece


def _check_interval(here: Sequence[int], whole: Sequence[int], *, rows: int) -> None:
    """Raise unless the entries of one row that lie here are neighbours in the whole row."""
    cut = [d for d, (size, full) in enumerate(zip(here, whole, strict=True)) if size != full]
    if cut and any(size != 1 for size in here[: cut[-1]]):
        raise ShardError(f"a shard cut within the dimensions of a kernel, for {rows} rows at once")


def _side(shard: Shard, stored: Sequence[int]) -> tuple[int, bool]:
    """Return which side of the stored matrix is cut, and whether the other one is too."""
    side = None if shard.axis not in stored else min(stored.index(shard.axis), 1)
    other = None
    if shard.other in stored:
        other = min(stored.index(shard.other), 1)
    if side is None:
        return (other or 0), False
    if other == side:
        raise ShardError("a shard cut in two dimensions that form one side of the matrix")
    return side, other is not None


def _torn(shard: Shard, axes: Sequence[_Axis], row: int) -> tuple[int, ...]:
    """Return the rows of the stored matrix that flat memory distributes over processes."""
    found = set[int]()
    for cut in shard.cuts:
        index, rest = [], cut
        for d in range(len(axes)):
            place, rest = divmod(rest, math.prod(shard.shape[d + 1 :]))
            index.append(place)
        before = all(index[d] in axes[d].chosen for d in range(row))
        if before and any(index[row + 1 :]) and index[row] in axes[row].chosen:
            found.add(axes[row].chosen.index(index[row]))
    return tuple(sorted(found))
