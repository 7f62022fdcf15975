"""The layer of a sharded weight: it names the whole matrix and looks up the part that lies here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from snc_client.layers.coverage import Layer
from snc_client.layers.place import Place
from snc_client.layers.reasons import SHARDED
from snc_client.layers.sharded.pieces import matrix_of
from snc_client.layers.view import View, flattened
from snc_client.operators import Matrix
from snc_client.operators.sharded import (
    Shard,
    ShardedMatrix,
    ShardError,
    attached_master,
    gathered,
    local_part,
    shard_of,
)

NOTE = "sharded: measured and held by all ranks together"


def refused(place: Place) -> str | None:
    """Return why a sharded weight cannot be measured, None if it can, by what is stored of it."""
    try:
        if not place.source.direct:
            return "computed from weights that are sharded: no rank holds the matrix"
        if _shard(place) is None:
            return SHARDED.format(type(place.source.parameters[0]).__name__)
    except ShardError as error:
        return str(error)
    return None


def stand_in(place: Place) -> Tensor:
    """Return a tensor without memory, of the whole weight's shape and dtype."""
    parameter = place.source.parameters[0]
    shard = _shard(place)
    assert shard is not None, "`refused` was asked before"
    return torch.empty(shard.shape, dtype=parameter.dtype, device="meta")


def sharded_layer(place: Place, view: View) -> Layer:
    """Return the layer of one matrix of a sharded weight. Raises `ShardError` for other maps."""
    whole = stand_in(place)
    part = view.part(whole)
    if view.operator not in (Matrix, flattened):
        raise ShardError(f"sharded, and no rank holds the map of this {view.kind}")
    shape, parameter = view.operator(view.lay(part)).shape, _parameter(place)
    find = shard_of if place.source.flat is None else place.source.flat.shard

    def look_up(values: Tensor | None = None) -> ShardedMatrix:
        stored = parameter()
        master = attached_master(stored) if values is None else None
        shard = find(stored, values if master is None else master)
        if shard is None or shard.shape != tuple(whole.shape):
            got = "whole" if shard is None else f"of shape {shard.shape}"
            raise LookupError(
                f"layer {place.name!r} must still be sharded, of shape {tuple(whole.shape)}, it is "
                f"{got}"
            )
        matrix = matrix_of(shard, view, shape)
        if values is not None:
            return matrix
        if master is not None and (low := find(stored, None)) is not None:
            copies = tuple(piece.local for piece in matrix_of(low, view, shape).pieces)
            matrix = replace(matrix, copies=copies)
        kept = gathered(stored)
        return matrix if kept is None else replace(matrix, gathered=(view.part(kept),))

    def no_operator() -> NoReturn:
        raise LookupError(
            f"layer {place.name!r} must be whole to be multiplied here, it is sharded"
        )

    look_up()
    notes = ("frozen: measured, never written" if place.frozen else None, view.note, NOTE)
    return Layer(
        name=place.name + view.suffix,
        kind=view.kind,
        shape=tuple(part.shape),
        fan_out=shape[0],
        fan_in=shape[1],
        writable=not place.frozen,
        note="; ".join(filter(None, notes)),
        names=tuple(name + view.suffix for name in place.all_names),
        linear=view.linear,
        cappable=_can_be_capped(parameter()) and not place.frozen,
        _weight=lambda: local_part(parameter()),
        _operator=no_operator,
        _shard=look_up,
        _parameter=parameter,
        _part=view.part,
    )


def _can_be_capped(parameter: Tensor) -> bool:
    """Return whether each process can clip its part: on a CPU, whose eigenvalues cost no wait.

    Not a weight that ZeRO-3 may keep gathered as well.
    """
    return local_part(parameter).device.type == "cpu" and not hasattr(parameter, "ds_tensor")


def _shard(place: Place) -> Shard | None:
    flat = place.source.flat
    return shard_of(place.source.parameters[0]) if flat is None else flat.shard()


def _parameter(place: Place) -> Callable[[], Tensor]:
    if place.source.flat is not None:
        return place.source.flat.parameter
    key = place.source.key
    return place.reader(lambda module: _kept(module, key), None)


def _kept(module: nn.Module, key: str) -> Tensor:
    return cast(Tensor, module._parameters[key])
