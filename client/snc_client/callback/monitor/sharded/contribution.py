"""Contribution: what this process adds to the sums of one layer, read off its own pieces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.callback.monitor.norms import norms
from snc_client.callback.monitor.sharded.layer_sums import (
    FROBENIUS,
    GRADIENT,
    MOVED,
    NO_GRADIENT,
    NO_UPDATE,
    UPDATE,
    Form,
    LayerSums,
    agreed,
)
from snc_client.estimator.sharded_power import Summand
from snc_client.operators.sharded import Rectangle, ShardedMatrix
from snc_client.precision import full_precision


@dataclass(frozen=True)
class Extras:
    """Matrices that are laid like a layer's own; None where there is none here."""

    gradient: ShardedMatrix | None = None
    update: tuple[ShardedMatrix, Tensor | float] | None = None
    """The optimizer's last step, up to this factor."""
    moved: Tensor | None = None
    """0-d float64, see `ShardedBounds.moved`."""


def record(
    matrix: ShardedMatrix, share: Summand, form: Form, numbers: Tensor, extras: Extras
) -> LayerSums:
    """Return this process's record of a layer; ``numbers`` [2] must be equal on all processes."""
    squares = torch.zeros(6, dtype=torch.float64, device=numbers.device)
    squares[FROBENIUS] = _square(matrix)
    squares[MOVED] = 0 if extras.moved is None else extras.moved
    squares[NO_GRADIENT] = float(extras.gradient is None)
    squares[NO_UPDATE] = float(extras.update is None)
    if extras.gradient is not None:
        squares[GRADIENT] = _square(extras.gradient)
    if extras.update is not None:
        step, factor = extras.update
        squares[UPDATE] = _square(step) * factor * factor
    values = {
        "lost": numbers.new_zeros(1),
        "agreed": agreed(numbers),
        "bands": share.bands,
        "squares": squares,
        "r": share.r_BB,
        "x": share.x_BN,
        "torn": share.torn_TN,
    }
    if form.proof is not None:
        values["proof"] = _proof(matrix, form.proof, numbers.device)
    return LayerSums(values)


def _square(matrix: ShardedMatrix) -> Tensor | float:
    """Return this process's share of the square of the Frobenius norm, float64."""
    pieces = [p.local for p in matrix.pieces if p.local.numel()] if matrix.counts else []
    return torch.stack(norms(pieces)).double().square().sum() if pieces else 0.0


def _proof(matrix: ShardedMatrix, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the share of what a certificate needs, float64: W'W (n, n), or W with its zeros."""
    total = torch.zeros(size, dtype=torch.float64, device=device)
    if not matrix.counts:
        return total
    whole = is_gathered(matrix)
    with full_precision(device):
        for piece in matrix.rows:
            _add(piece, total, whole=whole, torn=piece.row in matrix.torn)
    return total


def is_gathered(matrix: ShardedMatrix) -> bool:
    """Return whether a certificate needs all of W: no process holds a row, or rows are long."""
    return matrix.across is not None or matrix.small > matrix.shape[matrix.axis]


def proof_size(matrix: ShardedMatrix) -> tuple[int, int]:
    """Return the size of what is summed for a certificate."""
    n = matrix.small
    return (matrix.shape[matrix.axis], n) if is_gathered(matrix) else (n, n)


def _add(piece: Rectangle, total: Tensor, *, whole: bool, torn: bool) -> None:
    local = piece.local.double()
    rows, columns = local.shape
    if whole:
        total[piece.row : piece.row + rows, piece.column : piece.column + columns] += local
    elif not torn:  # these rows are whole, and torn ones are summed by themselves
        total += local.mT @ local
