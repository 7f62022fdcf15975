"""Contribution: what this process adds to the sums of one layer, read off its own pieces."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.callback.monitor.sharded.layer_sums import (
    FROBENIUS,
    GRADIENT,
    MOVED,
    NO_GRADIENT,
    NO_UPDATE,
    PLACES,
    UPDATE,
    Form,
    LayerSums,
)
from snc_client.callback.monitor.update_norms import Move, moves
from snc_client.devices import to_device
from snc_client.estimator.frobenius import norms
from snc_client.estimator.sharded_power import Summand
from snc_client.layers import Layer
from snc_client.operators.sharded import Rectangle, ShardedMatrix, ShardError
from snc_client.precision import full_precision

log = logging.getLogger("snc")


@dataclass(frozen=True)
class Extras:
    """Matrices that are laid like a layer's own; None where there is none here."""

    gradient: ShardedMatrix | None = None
    update: tuple[ShardedMatrix, Tensor | float] | None = None
    """The optimizer's last step, up to this factor."""
    stepped: Tensor | None = None
    """0-d float64, instead of ``update``: see `ShardedGuard.shares`."""
    moved: Tensor | None = None
    """0-d float64, see `ShardedBounds.moved`."""


def record(
    matrix: ShardedMatrix, share: Summand, form: Form, head: Mapping[str, Tensor], squares: Tensor
) -> LayerSums:
    """Return this process's record of a layer, but for "bands"; ``head`` as in `LayerSums.lost`."""
    values = {
        **head,
        "squares": squares,
        "r": share.r_BB,
        "x": share.x_BN,
        "torn": share.torn_TN,
    }
    if form.proof is not None:
        values["proof"] = _proof(matrix, form.proof, squares.device)
    return LayerSums(values)


def squares(
    matrices: Sequence[ShardedMatrix | None], extras: Sequence[Extras], device: torch.device
) -> Tensor:
    """Return this process's shares of the sums of squares of L layers, float64 [L, 6].

    The columns are the places in "squares". All norms are computed in few launches.
    """
    flags = [0.0] * (PLACES * len(matrices))
    tensors: list[Tensor] = []
    places: list[int] = []
    moved: list[tuple[int, Tensor]] = []

    def add(place: int, matrix: ShardedMatrix | None) -> None:
        pieces = () if matrix is None or not matrix.counts else matrix.pieces
        found = [p.local for p in pieces if p.local.numel()]
        tensors.extend(found)
        places.extend([place] * len(found))

    factors: dict[int, Tensor | float] = {}
    for i, (matrix, extra) in enumerate(zip(matrices, extras, strict=True)):
        at = PLACES * i
        flags[at + NO_GRADIENT] = float(extra.gradient is None)
        flags[at + NO_UPDATE] = float(extra.update is None and extra.stepped is None)
        add(at + FROBENIUS, matrix)
        add(at + GRADIENT, extra.gradient)
        if extra.update is not None:
            step, factors[at + UPDATE] = extra.update
            add(at + UPDATE, step)
        for place, square in ((MOVED, extra.moved), (UPDATE, extra.stepped)):
            if square is not None:
                moved.append((at + place, square))
    total = to_device(flags, device, torch.float64)
    if tensors:
        values = torch.stack(norms(tensors)).double().square()
        total.index_add_(0, to_device(places, device, torch.int64), values)
    if moved:
        which = to_device([place for place, _ in moved], device, torch.int64)
        total.index_add_(0, which, torch.stack([square for _, square in moved]))
    for place, factor in factors.items():
        total[place] *= factor * factor
    return total.view(len(matrices), PLACES)


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


def extras(
    layers: Sequence[Layer],
    metrics: Collection[str],
    optimizer: torch.optim.Optimizer | None,
) -> list[Extras]:
    """Return what is summed besides the weights; ``optimizer``: whose steps are known, if any.

    A gradient that is a partial sum, or not there, is left out: its norm is not measured.
    """
    try:
        steps: dict[int, Move] = {}
        if optimizer is not None and "update_norm" in metrics:
            wanted = {id(p) for x in layers if (p := x.parameter()) is not None}
            steps = {id(move.parameter): move for move in moves(optimizer, wanted)}
        return [_of(layer, steps, gradient="grad_norm" in metrics) for layer in layers]
    except Exception as error:  # an outer edge: a norm that fails must not stop holding
        log.warning("snc: norms of sharded layers could not be measured: %r", error)
        return [Extras()] * len(layers)


def _of(layer: Layer, steps: dict[int, Move], *, gradient: bool) -> Extras:
    try:
        parameter, matrix = layer.parameter(), layer.shard()
    except LookupError:  # it has no share either
        return Extras()
    if not any(piece.local.numel() for piece in matrix.pieces):
        # Nothing lies here, so no sum lacks a share: FSDP1 gives such a process no gradient.
        return Extras(gradient=matrix, update=(matrix, 0.0))
    move = steps.get(id(parameter))
    found = None if parameter is None or not gradient else parameter.grad
    step = None if move is None else _like(layer, move.direction)
    return Extras(
        gradient=None if found is None else _like(layer, found),
        update=None if move is None or step is None else (step, move.factor),
    )


def _like(layer: Layer, values: Tensor) -> ShardedMatrix | None:
    try:
        return layer.shard(values)
    except (LookupError, ShardError):
        return None
