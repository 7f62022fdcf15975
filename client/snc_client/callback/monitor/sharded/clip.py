"""Clip: cap the singular values of a sharded matrix, each process its own pieces."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from snc_client.callback.monitor.sharded.layer_sums import LayerSums
from snc_client.constraint import FULL
from snc_client.operators.sharded import ShardedMatrix
from snc_client.precision import full_precision

# Thresholds. Beside a singular value s the eigenvalues of W'W know another one, t, to s^2 2^-53 / t
# times some: at a thousand thresholds to 1e-8 in t, at a million to 1e-3.
FAR_ABOVE: Final = 1_000.0


@torch.no_grad()
def clip_(
    matrix: ShardedMatrix,
    sums: LayerSums,
    threshold: Tensor,
    dtype: torch.dtype,
    *,
    gathered: bool,
) -> Tensor:
    """Clip singular values above ``threshold`` (0-d) in place; return the factor of the largest.

    On a CPU, for a finite matrix stored in ``dtype``. ``sums`` are those of a certificate: W'W or,
    ``gathered``, all of W, in float64 and equal on all processes. W <- W (I - V D V') with the
    right singular vectors V and D = max(0, 1 - threshold / s); from the left where a gathered W is
    wide. So each row is cut by itself. The stored norm is at most threshold (1 + 2^-24 sqrt(rank))
    in float32, from a norm of up to ``FAR_ABOVE`` thresholds; low precision aims lower by its
    rounding.
    Cost: the eigenvalues of W'W on every process, and two products of its own pieces.
    """
    unit = 0.0 if dtype in FULL else torch.finfo(dtype).eps / 2
    aim = threshold.double() * (1 - unit)
    total, torn_TN = (sums.values[name].double() for name in ("proof", "torn"))
    with full_precision(total.device):
        if gathered:
            wide = total.shape[0] < total.shape[1]
            tall = total.mT if wide else total
            s_K, v_NK, factor = _above(tall.mT @ tall, aim)
            new = _cut(tall, s_K, v_NK, aim)
            total = new.mT if wide else new
        else:
            s_K, v_NK, factor = _above(total + torn_TN.mT @ torn_TN, aim)
            torn_TN = _cut(torn_TN, s_K, v_NK, aim)
        if not len(s_K):
            return factor
        for piece in matrix.rows:
            local, (rows, columns) = piece.local, piece.local.shape
            span = slice(piece.column, piece.column + columns)
            if gathered:
                local.copy_(total[piece.row : piece.row + rows, span])
            elif piece.row in matrix.torn:
                local.copy_(torn_TN[matrix.torn.index(piece.row), span].reshape(rows, columns))
            else:
                local.copy_(_cut(local.double(), s_K, v_NK, aim))
    return factor


def follow(matrix: ShardedMatrix | None, scale: Tensor) -> None:
    """Bring what else stores a written matrix to it: copies of masters, and of all of it."""
    if matrix is None:
        return
    for low, piece in zip(matrix.copies, matrix.pieces, strict=False):
        low.copy_(piece.local)
    for whole in matrix.gathered:
        whole.copy_(whole.float() * scale)


def _above(g_NN: Tensor, aim: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular values above ``aim``, their vectors, and the factor of the largest."""
    squares, v_NN = torch.linalg.eigh(g_NN)
    s_N = squares.clamp(min=0).sqrt()
    above = s_N > aim
    factor = torch.where(above[-1], aim / s_N[-1], 1.0).float()
    return s_N[above], v_NN[:, above], factor


def _cut(rows_MN: Tensor, s_K: Tensor, v_NK: Tensor, aim: Tensor) -> Tensor:
    return rows_MN - ((rows_MN @ v_NK) * (1 - aim / s_K)) @ v_NK.mT
