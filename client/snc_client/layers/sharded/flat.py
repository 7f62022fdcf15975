"""The weights that FSDP1 keeps in flat memory, in the modules that use them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from snc_client.layers.sources import Source
from snc_client.operators.sharded import FlatPlace

FlatPlaces: TypeAlias = Mapping[tuple[int, str], FlatPlace]
"""By the id of a module and the name that it has for the weight."""


def flat_places(model: nn.Module) -> FlatPlaces:
    """Return every weight in flat memory; shared ones have several entries with one place."""
    found: dict[tuple[int, str], FlatPlace] = {}
    for module in model.modules():
        handle: Any = getattr(module, "_handle", None)
        if type(handle).__name__ != "FlatParamHandle":
            continue
        flat, link = handle.flat_param, weakref.ref(handle)
        replicas = getattr(module, "_inter_node_pg", None)
        for index, info in enumerate(flat._param_infos):
            place = FlatPlace(link, index, replicas)
            found[id(info.module), info.param_name] = place
        for shared in flat._shared_param_infos:
            place = found[id(shared.prim_module), shared.prim_param_name]
            found[id(shared.module), shared.param_name] = place
    return found


def with_flat(found: Iterator[Source], module: nn.Module, places: FlatPlaces) -> Iterator[Source]:
    """Yield the sources of a module, with those that only flat memory has."""
    keys = {key for holder, key in places if holder == id(module)} if places else set()
    for source in found:
        if any(type(p).__name__ == "FlatParameter" for p in source.parameters) and places:
            continue  # its weights are found in their own modules
        place = places.get((id(module), source.key)) if source.direct else None
        keys.discard(source.key)
        yield source if place is None else replace(source, flat=place)
    for key in sorted(keys):
        flat = places[id(module), key]
        yield Source(
            key,
            (cast(nn.Parameter, flat.parameter()),),
            _reader(flat),
            None,
            direct=True,
            flat=flat,
        )


def _reader(flat: FlatPlace) -> Callable[[nn.Module], Tensor]:
    return lambda module: flat.parameter().detach()
