"""Extras: gradients and optimizer steps of sharded layers, laid like their weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from snc_client.callback.monitor.sharded.contribution import Extras
from snc_client.callback.monitor.update_norms import Move, moves
from snc_client.layers import Layer
from snc_client.operators.sharded import ShardedMatrix, ShardError

log = logging.getLogger("snc")


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
