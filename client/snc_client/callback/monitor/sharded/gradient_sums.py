"""GradientSums: what this process adds to the norm of all gradients of a model together."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.monitor.sharded.groups import weakly
from snc_client.callback.monitor.sharded.layer_sums import GRADIENT, LayerSums
from snc_client.callback.monitor.sharded.roll_call import Members
from snc_client.callback.readback.metrics import NOT_MEASURED
from snc_client.devices import to_device
from snc_client.estimator.frobenius import norms
from snc_client.layers import Layer
from snc_client.layers.sharded import flat_places
from snc_client.operators.sharded import (
    Group,
    ShardError,
    is_dtensor,
    is_whole,
    local_part,
    members,
    replicas_of,
    shard_of,
)

log = logging.getLogger("snc")

# Entries of a parameter that every process holds whole and whose gradient may be a partial sum, as
# that of a normalisation under sequence parallelism. Up to so many they are summed as they are.
MOST_SUMMED = 1 << 16
SQUARES, GIVEN, UNKNOWN = range(3)  # places in what a group sums, before the entries
HEAD = 3


@dataclass(frozen=True)
class _GradientPlace:
    """Where the gradient of a parameter lies: with whom it is summed, None where all is here."""

    ranks: Members | None = None
    counts: bool = True
    entries: int = 0
    """Of a parameter whose gradient may be a partial sum."""
    why: str | None = None
    """Why it is not known."""


class GradientSums:
    """The squares of all gradients, by the groups over which they are summed.

    Layers' own sums have the gradients of weights that they cover in full. The other parameters are
    summed here: one vector a group, of a length that all its processes know from the start.
    ``signals`` know the parameters that the model has now.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], signals: NormSignals) -> None:
        self._signals = signals
        self._flat = {id(x.parameter()): x for x in flat_places(model).values()}
        self._said = False
        self._here = torch.zeros(HEAD)  # of what lies here in full, see `shares`
        parameters = self._signals.parameters()
        self._groups: list[Callable[[], Group | None]] = []
        self._places = {id(p): self._place(p) for p in parameters}
        self._known = parameters  # keeps their identities
        self._covering = _covering(layers)
        covered = {id(layers[i].parameter()) for i in self._covering}
        self._entries: dict[int, tuple[Members, int]] = {}  # parameter -> where its entries go
        self._sizes: dict[Members, int] = {}
        texts: dict[Members, list[Any]] = {}
        for p in parameters:
            place = self._places[id(p)]
            if (group := place.ranks) is None:
                continue
            at = self._sizes.setdefault(group, HEAD)
            if place.entries and id(p) not in covered:
                self._entries[id(p)] = group, at
                self._sizes[group] += place.entries
            texts.setdefault(group, []).append(place.entries)
        self.told: dict[Members, str] = {group: json.dumps(text) for group, text in texts.items()}
        """What must be equal in all processes of a group."""

    @property
    def groups(self) -> list[Group]:
        """Return the groups of the parameters that are there."""
        return [group for each in self._groups if (group := each()) is not None]

    @property
    def sizes(self) -> Mapping[Members, int]:
        """Return the lengths of what is summed over each group."""
        return self._sizes

    def shares(self, layers: Sequence[Layer] | None, device: torch.device) -> dict[Members, Tensor]:
        """Return what this process adds, float64; no gradient is known where that fails.

        ``layers`` are the sharded ones as they are now; None: no gradient is known.
        """
        found = {
            group: torch.zeros(size, dtype=torch.float64, device=device)
            for group, size in self._sizes.items()
        }
        self._here = torch.zeros(HEAD, dtype=torch.float64, device=device)
        try:
            if layers is not None:
                self._fill(found, layers)
        except Exception as error:  # an outer edge: a norm that fails must not stop holding
            self._say(repr(error))
            for each in (self._here, *found.values()):
                each.zero_()[UNKNOWN] = 1
        return found

    def total(self, found: Mapping[Members, Tensor], layers: Sequence[LayerSums]) -> Tensor:
        """Return the norm of all gradients, 0-d float32, from the sums that `shares` began.

        `NOT_MEASURED` where a gradient is not known to all, or nothing has one.
        """
        squares, given, unknown = self._here.unbind()
        for each in found.values():
            squares = squares + each[SQUARES] + each[HEAD:].double().square().sum()
            given, unknown = given + each[GIVEN], unknown + each[UNKNOWN]
        for i in self._covering:
            values = layers[i].values
            squares, unknown = squares + values["squares"][GRADIENT], unknown + values["lost"][0]
        total = squares.sqrt().float()
        absent = (given == 0) | (unknown != 0)
        if self._signals.optimizer is None:  # then the loop may have zeroed them
            absent = absent | (total == 0)
        return torch.where(absent, NOT_MEASURED, total)

    def _fill(self, found: Mapping[Members, Tensor], layers: Sequence[Layer]) -> None:
        """Add the squares of what lies here in full, and those of shards, to their groups."""
        scaled = getattr(self._signals.optimizer, "found_inf", None) is not None
        covered = {id(layers[i].parameter()) for i in self._covering}
        tensors: dict[Members | None, list[Tensor]] = {group: [] for group in (None, *found)}
        given = dict.fromkeys(tensors, 0)
        unknown: str | None = "its optimizer has still to unscale them" if scaled else None
        for p in self._signals.parameters():
            place, gradient = self._where(p), p.grad
            unknown = unknown or place.why
            if gradient is None or unknown:
                continue
            group = place.ranks
            if group not in given:
                unknown = "a parameter is new, and lies with other ranks than the others"
                continue
            given[group] += 1
            if is_dtensor(gradient) and gradient.placements != p.placements:  # type: ignore[attr-defined]
                unknown = self._partial(found, p, gradient)
            elif gradient.layout != torch.strided:
                unknown = "a gradient is sparse"
            elif place.counts and id(p) not in covered and gradient.numel():
                tensors[group].append(local_part(gradient))
        if unknown:
            self._say(unknown)
        for group, each in tensors.items():
            total = self._here if group is None else found[group]
            total[GIVEN:HEAD] = to_device([given[group], bool(unknown)], total.device, total.dtype)
            if each:
                total[SQUARES] = torch.stack(norms(each)).double().square().sum()

    def _partial(self, found: Mapping[Members, Tensor], p: Tensor, gradient: Any) -> str | None:
        """Add the entries of a gradient laid otherwise than its parameter, or return why not."""
        kinds = [_reduced(x) for x in gradient.placements]
        if id(p) not in self._entries or None in kinds:
            return f"a gradient has placements {gradient.placements}"
        group, at = self._entries[id(p)]
        mesh, here = gradient.device_mesh, gradient.device_mesh.get_coordinate()
        if not any(kind == "once" and here[d] for d, kind in enumerate(kinds)):
            share = math.prod(mesh.size(d) for d, kind in enumerate(kinds) if kind == "avg")
            entries = local_part(gradient).reshape(-1).double() / share
            found[group][at : at + len(entries)] += entries
        return None

    def _where(self, p: nn.Parameter) -> _GradientPlace:
        place = self._places.get(id(p))
        if place is None:
            self._known = [*self._known, p]
            place = self._places[id(p)] = self._place(p)
        return place

    def _place(self, p: nn.Parameter) -> _GradientPlace:
        flat = self._flat.get(id(p))
        try:
            shard = shard_of(p) if flat is None else flat.shard()
            if shard is not None:
                self._groups.append(weakly(shard.group))
                return _GradientPlace(members(shard.group), shard.counts, why=_elsewhere(p))
            if is_whole(p) and (group := replicas_of(p)) is not None:
                self._groups.append(weakly(group))
                first = not any(p.device_mesh.get_coordinate())  # type: ignore[attr-defined]
                entries = p.numel() if p.numel() <= MOST_SUMMED else 0
                return _GradientPlace(members(group), first, entries)
        except (LookupError, ShardError) as error:
            return _GradientPlace(why=str(error))
        return _GradientPlace()

    def _say(self, why: str) -> None:
        if not self._said:
            self._said = True
            log.warning("snc: the norm of all gradients together is not measured: %s", why)


def _elsewhere(p: nn.Parameter) -> str | None:
    return "gradients of ZeRO-3 lie elsewhere" if hasattr(p, "ds_tensor") else None


def _covering(layers: Sequence[Layer]) -> list[int]:
    """Return the layers that together have all entries of their parameters."""
    of: dict[int, list[int]] = {}
    for i, layer in enumerate(layers):
        of.setdefault(id(layer.parameter()), []).append(i)
    found = []
    for each in of.values():
        parameter: Any = layers[each[0]].parameter()
        size = sum(math.prod(layers[i].shard().shape) for i in each)
        if is_dtensor(parameter) and size == parameter.numel():
            found += each
    return sorted(found)


def _reduced(placement: Any) -> str | None:
    """Return how processes share a gradient along a mesh dimension, None where not by a sum."""
    name = type(placement).__name__
    if name == "Replicate":
        return "once"
    operation = getattr(placement, "reduce_op", None) if "Partial" in name else None
    return operation if operation in ("sum", "avg") else None
