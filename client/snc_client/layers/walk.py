"""Walk a model by its tensors, not its module types: each is a layer or skipped with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain

from torch import nn
from torch.nn.utils import parametrize

from snc_client.layers.companions import quantised_weight_of
from snc_client.layers.conv import is_convolution
from snc_client.layers.coverage import Coverage, Layer, Skipped
from snc_client.layers.fused import fused
from snc_client.layers.maps import asked, mapped
from snc_client.layers.module_views import Conv, views
from snc_client.layers.names import canonical_paths
from snc_client.layers.place import Place, layer
from snc_client.layers.products.logits import Logits, logit_layers
from snc_client.layers.products.lora import lora_layer, lora_pairs
from snc_client.layers.reasons import COMPANION, is_sharded, no_matrix, nothing, packed, reason
from snc_client.layers.sharded import flat_places, refused, sharded_layer, stand_in, with_flat
from snc_client.layers.sources import sources
from snc_client.layers.view import Parts, View, cut
from snc_client.operators.sharded import ShardError


def find_layers(
    model: nn.Module,
    *,
    conv: Conv = "reshape",
    grids: Mapping[str, Sequence[int]] | None = None,
    split: Mapping[str, Parts] | None = None,
    maps: Mapping[str, str] | None = None,
    logits: Logits | None = None,
    all_must_match: bool = True,
) -> Coverage:
    """Return every matrix of the model as a layer, and the other tensors with the reason.

    A weight that holds several matrices (q, k, v; gates; experts) gives one layer for each; tied
    weights give one in all. Fused outputs are cut where the class is known (`fused`). ``split``
    cuts them elsewhere, and otherwise: ``{"*.c_attn.weight": "qkv"}`` into three equal parts,
    ``{"*.qkv.weight": {"q": 4096, "k": 1024, "v": 1024}}`` into the sizes given, ``""`` not at
    all. Only right where the parts lie one after the other: some models interleave them by head.

    ``conv="reshape"`` measures a kernel as outputs x (inputs*kernel): cheap, but not the norm of
    the map. ``conv="operator"`` measures the map itself, on inputs of the size that ``grids`` has
    for the module's name (as `watch_grids` collects it), else on 16 per dimension.

    ``maps`` is for weights that are not used as a matrix: ``{"*.norm.weight": "gain"}`` measures
    max |gain| of torch's own normalisations (of a BatchNorm, that of evaluation), which a cap clips
    entry by entry; ``{"wte.weight": "rows"}`` the longest row of an Embedding, its norm for one
    index, where a cap shrinks the rows that are too long.

    ``logits`` adds a layer for each head of the attentions that it names, ``{"blocks.*.attn": 12}``
    or ``(heads of q, heads of k)``: sigma of Wq' Wk / sqrt(size). Not with rotary embeddings: then
    the map depends on the distance, and the product of the sigmas of q and k is its bound.
    ``"auto"`` finds projections and heads of known classes. ``blocks.0.attn:logits`` names the
    logits of all heads of ``blocks.0.attn``.

    Nothing in the model changes. Raises ValueError if the model holds no matrix, on this rank or on
    others, or if an entry of ``split``, ``maps`` or ``logits`` does not fit, or matches nothing.
    With ``all_must_match`` False, neither no matrix nor no match is an error.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    places, skipped, layers = _places(model), list(packed(model)), list[Layer]()
    pairs = lora_pairs(places)
    what = {x.name: found for x in places if (found := asked(x, maps or {}))}
    alone = [x for x in places if x.name not in pairs and x.name not in what]
    shards = {x.name for x in places if _sharded(x)}
    reasons = {x.name: _reason(x, sharded=x.name in shards) for x in alone}
    reasons |= _companions(model, places, [x for x in alone if reasons[x.name] is None])
    _check_conv(conv)
    if all_must_match:
        _check_grids(grids or {}, places)
        cut_ones = [x for x in alone if reasons[x.name] is None or x.name in shards]
        _check_names("split", split or {}, cut_ones)
        _check_names("maps", maps or {}, [x for x in places if x.source.key == "weight"])
    for place in places:
        partner, why = pairs.get(place.name), reasons.get(place.name)
        if place.name in what:
            layers.append(mapped(place, what[place.name]))
        elif why:
            skipped.append(Skipped(place.name, place.shape, why, place.name in shards))
        elif partner:
            layers.append(lora_layer(place, partner))
        elif place.name in pairs:
            continue
        elif place.name not in shards:
            layers += _layers(place, split or {}, conv, grids or {}, layer)
        else:
            try:
                layers += _layers(place, split or {}, conv, grids or {}, sharded_layer)
            except ShardError as error:
                reasons[place.name] = str(error)
                skipped.append(Skipped(place.name, place.shape, str(error), sharded=True))
    layers += logit_layers(model, places, logits or {}, all_must_match=all_must_match)
    if not layers and not shards and all_must_match:
        raise ValueError(nothing(model, skipped))
    measured = sum(place.size for place in places if not reasons.get(place.name))
    return Coverage(tuple(layers), tuple(skipped), measured, sum(place.size for place in places))


def _places(model: nn.Module) -> list[Place]:
    """Return every weight of the model once, under all its names, in model order."""
    places: dict[object, Place] = {}
    inside: set[int] = set()
    paths = canonical_paths(model)
    taken: dict[str, object] = {}
    flat = flat_places(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module):
            # Modules that compute a weight belong to that weight: they are no layers of their own.
            inside |= {id(part) for part in module.parametrizations.modules()}
        if id(module) in inside:
            continue
        for source in with_flat(sources(module), module, flat):
            real = _joined(path, source.key)
            name = _joined(paths[path], source.key)
            found = Place(model, real, name, module, source)
            if taken.setdefault(name, found.memory) != found.memory:
                found.name = name = real  # another weight has this canonical name
            place = places.setdefault(found.memory, found)
            if name not in place.names:
                place.names.append(name)
            if real != name:
                place.aliases.append(real)
            place.parameters.extend(source.parameters)
    return list(places.values())


def _reason(place: Place, *, sharded: bool) -> str | None:
    if not sharded:
        return reason(place.module, place.value, place.source.parameters)
    if why := refused(place):
        return why
    place.value = stand_in(place)
    return no_matrix(place.module, place.value)


def _sharded(place: Place) -> bool:
    """Return whether other ranks hold a part of the weight."""
    return any(map(is_sharded, (*place.source.parameters, place.value)))


def _companions(model: nn.Module, places: list[Place], alone: list[Place]) -> dict[str, str]:
    """Return the reason for each tensor of ``alone`` that holds scales of a quantised weight."""
    stored = {x.name: x.value for x in places} | dict(model.named_buffers())
    quantised = {k for k, v in stored.items() if not v.is_floating_point() or v.itemsize < 2}
    found = {x.name: quantised_weight_of(x.name, quantised) for x in alone if quantised}
    return {k: COMPANION.format(weight) for k, weight in found.items() if weight}


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _layers(
    place: Place,
    split: Mapping[str, Parts],
    conv: Conv,
    grids: Mapping[str, Sequence[int]],
    make: Callable[[Place, View], Layer],
) -> list[Layer]:
    grid = next((grids[path] for path in place.paths if path in grids), None)
    try:
        whole = views(place.module, place.name, place.value, conv, grid)
        return [make(place, view) for view in _split(place, whole, split)]
    except ShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{place.name}: {error}") from None


def _split(place: Place, whole: tuple[View, ...], split: Mapping[str, Parts]) -> tuple[View, ...]:
    for pattern, parts in split.items():
        if any(fnmatchcase(name, pattern) for name in place.all_names):
            if place.value.ndim == 3 and whole[0].kind == "expert":
                return tuple(piece for view in whole for piece in cut(view, place.value, parts))
            if len(whole) > 1 or place.value.ndim != 2:
                raise ValueError(
                    f"split by {pattern!r} must name a 2-d matrix or a stack of matrices"
                )
            return cut(whole[0], place.value, parts)
    known = fused(place.module, place.source.key, *place.parent)
    if known is None or not (place.value.ndim == 2 or whole[0].kind == "expert"):
        return whole
    pieces = [cut(view, place.value, known.parts, in_turns=known.in_turns) for view in whole]
    return tuple(replace(piece, note=known.note) for piece in chain(*pieces))


def _check_conv(conv: str) -> None:
    if conv not in ("reshape", "operator"):
        raise ValueError(f"conv must be 'reshape' or 'operator', got {conv!r}")


def _check_grids(grids: Mapping[str, object], places: list[Place]) -> None:
    known = {path for place in places if is_convolution(place.module) for path in place.paths}
    if unknown := sorted(set(grids) - known):
        raise ValueError(f"grids must name convolutions of the model, got {unknown[0]!r}")


def _check_names(what: str, given: Mapping[str, object], among: list[Place]) -> None:
    names = [name for place in among for name in place.all_names]
    for pattern in given:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{what} must name weights that are measured, {pattern!r} matches none"
            )
