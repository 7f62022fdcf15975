"""ShardedMatrix: a matrix of which some pieces lie here; its products are shares of sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.operators.dense import Matrix
from snc_client.operators.entries import largest
from snc_client.operators.sharded.shard import Group


@dataclass(frozen=True, eq=False)
class Rectangle:
    """A rectangle of a matrix: ``local`` (r, c) begins at (``row``, ``column``) of the matrix."""

    local: Tensor
    row: int
    column: int

    def turned(self) -> Rectangle:
        """Return the same piece of the transposed matrix."""
        return Rectangle(self.local.mT, self.column, self.row)


@dataclass(frozen=True, eq=False)
class ShardedMatrix:
    """A matrix (m, n) of which the ``pieces`` lie here; the fields are those of a `Shard`.

    ``axis`` is the side that is distributed: 0 for rows, 1 for columns. With ``turned()`` it is
    always the rows. ``torn`` are the indices along ``axis`` of which no process holds all entries.
    """

    shape: tuple[int, int]
    pieces: tuple[Rectangle, ...]
    group: Group
    axis: int = 0
    counts: bool = True
    across: Group | None = None
    torn: tuple[int, ...] = ()
    copies: tuple[Tensor, ...] = ()
    """Of masters: the stored low-precision tensor of each piece, cast from it after a write."""
    gathered: tuple[Tensor, ...] = ()
    """Whole copies of the matrix in this process, which are multiplied as the pieces are."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return tuple(piece.local for piece in self.pieces)

    @property
    def small(self) -> int:
        """Return the length of the side that is not distributed: that of a warm vector."""
        return self.shape[1 - self.axis]

    @property
    def rows(self) -> tuple[Rectangle, ...]:
        """Return the pieces, of the transposed matrix where columns are distributed."""
        return tuple(p.turned() for p in self.pieces) if self.axis else self.pieces

    def amax(self) -> Tensor | None:
        """Return the largest absolute entry that lies here; None where none does."""
        found = [largest(p.local) for p in self.pieces if p.local.numel()]
        return torch.stack(found).amax() if found else None


def times(piece: Rectangle, v_BN: Tensor) -> Tensor:
    """Return V W' for a piece W (r, c) and the rows of V (b, n) that meet its columns: (b, r)."""
    columns = v_BN[:, piece.column : piece.column + piece.local.shape[1]]
    return Matrix(piece.local).matmul(columns.mT).mT


def back(piece: Rectangle, u_BM: Tensor) -> Tensor:
    """Return U W for a piece W (r, c) and U (b, r), the share of its rows: (b, c)."""
    return Matrix(piece.local).rmatmul(u_BM.mT).mT
