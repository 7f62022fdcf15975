"""Attention logits of each head: the product Wq' Wk bounds them, neither factor alone does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from torch import Tensor, nn

from snc_client.layers.coverage import ALL_HEADS, Layer
from snc_client.layers.module_views import is_hf_conv1d
from snc_client.layers.place import Place
from snc_client.layers.products.attentions import attentions, scaled_as_usual
from snc_client.layers.reasons import no_numbers
from snc_client.operators import LowRank

Heads: TypeAlias = int | tuple[int, int]
Logits: TypeAlias = Mapping[str, Heads] | Literal["auto"]
Read: TypeAlias = Callable[[], Tensor]
# Names of the two projections below the name of an attention.
_PAIRS: Final = (
    ("q_proj.weight", "k_proj.weight"),
    ("query.weight", "key.weight"),
    ("to_q.weight", "to_k.weight"),
    ("wq.weight", "wk.weight"),
    ("q_proj_weight", "k_proj_weight"),
)
_FUSED: Final = ("in_proj_weight",)


def logit_layers(
    model: nn.Module, places: list[Place], logits: Logits, *, all_must_match: bool = True
) -> list[Layer]:
    """Return a layer for each head of the attentions that the patterns name; ``"auto"``: of all
    those of a known class (`attentions`).

    sigma of Wq' Wk / sqrt(d) bounds the logit of two vectors of norm 1, where nothing rotates or
    normalises q and k in between, without biases. Enforced by sqrt f on the rows of q and on those
    of k; several heads of q may share one of k: ``(heads of q, heads of k)``.

    Raises ValueError for a pattern that names no attention known by its projections, and for heads
    that do not divide them.
    """
    named = {name: place for place in places for name in place.names}
    layers: list[Layer] = []
    if isinstance(logits, str):
        if logits != "auto":
            raise ValueError(f"logits must be a mapping or 'auto', got {logits!r}")
        layers = _known(model, places)
        if not layers and all_must_match:
            raise ValueError("logits must be {attention: heads}: no attention of a known class")
        return layers
    for pattern, heads in logits.items():
        paths = [path for path in _paths(named) if fnmatchcase(path, pattern)]
        if not paths and all_must_match:
            known = ", ".join(x for x, _ in _PAIRS)
            raise ValueError(
                f"logits must name attentions that hold {known} and their keys, or in_proj_weight, "
                f"{pattern!r} matches none"
            )
        for path in paths:
            layers += _heads(path, *_projections(named, path), heads)
    return layers


def _known(model: nn.Module, places: list[Place]) -> list[Layer]:
    """Return the heads of all attentions of known classes whose weights hold plain numbers."""
    named = {name: place for place in places for name in place.all_names}
    layers: list[Layer] = []
    for path, module, known, heads in attentions(model):
        found = [named.get(f"{path}.{key}".lstrip(".")) for key in (known.q, known.k)]
        q, k = found
        if q is None or k is None or any(map(_why_not, (q, k))):
            continue  # the weights are listed as skipped, with the reason
        size = _outputs(q) // (3 if known.fused else 1) // heads
        if scaled_as_usual(module, size):
            layers += _heads(q.name.removesuffix(known.q).rstrip("."), q, k, known.fused, heads)
    return layers


def _why_not(place: Place) -> str | None:
    why = no_numbers(place.value) or (None if place.source.direct else "computed from others")
    return why or (None if place.value.ndim == 2 else "no matrix")


def _paths(named: Mapping[str, Place]) -> list[str]:
    """Return the names of the modules that hold both projections, in model order."""
    ends = (*(q for q, _ in _PAIRS), *_FUSED)
    paths = [
        name.removesuffix(end).rstrip(".") for name in named for end in ends if _ends(name, end)
    ]
    return [path for path in dict.fromkeys(paths) if _found(named, path)]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _found(named: Mapping[str, Place], path: str) -> bool:
    return next(_candidates(named, path), None) is not None


def _candidates(named: Mapping[str, Place], path: str) -> Iterator[tuple[Place, Place, bool]]:
    prefix = f"{path}." if path else ""
    for q, k in _PAIRS:
        if prefix + q in named and prefix + k in named:
            yield named[prefix + q], named[prefix + k], False
    for fused in _FUSED:
        if prefix + fused in named and isinstance(
            named[prefix + fused].module, nn.MultiheadAttention
        ):
            yield named[prefix + fused], named[prefix + fused], True


def _projections(named: Mapping[str, Place], path: str) -> tuple[Place, Place, bool]:
    return next(_candidates(named, path))


def _heads(path: str, q: Place, k: Place, fused: bool, heads: Heads) -> list[Layer]:
    of_q, of_k = heads if isinstance(heads, tuple) else (heads, heads)
    for place in (q, k):
        if why := _why_not(place):
            raise ValueError(f"logits: {place.name} must be a dense matrix, it is {why}")
    rows = [_outputs(place) // (3 if fused else 1) for place in (q, k)]
    fits = min(of_q, of_k) > 0 and rows[0] % of_q == 0 and rows[1] % of_k == 0 and of_q % of_k == 0
    if not fits or rows[0] // of_q != rows[1] // of_k:
        raise ValueError(
            f"logits of {path!r} must give heads that divide {rows[0]} outputs of q and {rows[1]} "
            f"of k into equal sizes, got {heads}"
        )
    if of_k != of_q:
        return [_layer(path, q, k, h, h * of_k // of_q, rows[0] // of_q, fused, shared=True)
                for h in range(of_q)]  # fmt: skip
    return [_layer(path, q, k, h, h, rows[0] // of_q, fused) for h in range(of_q)]


def _layer(
    path: str, q: Place, k: Place, of_q: int, of_k: int, size: int, fused: bool,
    shared: bool = False,
) -> Layer:  # fmt: skip
    first = _outputs(k) // 3 if fused else 0
    read_q = _rows(q, of_q * size, size)
    read_k = _rows(k, first + of_k * size, size)
    columns = (q.value.numel() // _outputs(q), k.value.numel() // _outputs(k))
    trained = [read for place, read in ((q, read_q), (k, read_k)) if not place.frozen]
    if shared:  # a key that several queries share would be scaled by each of them
        trained = [] if q.frozen else [read_q]
    how = "enforced through q alone" if shared else "enforced through q and k"
    return Layer(
        name=f"{path}[qk{of_q}]".lstrip("."),
        kind="logits",
        shape=columns,
        fan_out=columns[0],
        fan_in=columns[1],
        writable=bool(trained),
        note=f"Wq' Wk / sqrt({size}), {how}" if trained else "frozen: measured, never written",
        names=(f"{path}[qk{of_q}]".lstrip("."), f"{path}{ALL_HEADS}"),
        _weight=trained[0] if trained else read_q,
        _partner=trained[1] if len(trained) == 2 else None,
        _operator=lambda: LowRank(read_q().mT, read_k(), 1 / math.sqrt(size)),
    )


def _rows(place: Place, start: int, size: int) -> Read:
    """Return a reader of some outputs, also of a weight that is stored inputs x outputs."""
    read = place.reader(place.source.read, place.value.shape)
    if is_hf_conv1d(place.module, place.value):
        return lambda: read().t()[start : start + size]
    return lambda: read()[start : start + size]


def _outputs(place: Place) -> int:
    return place.value.shape[1 if is_hf_conv1d(place.module, place.value) else 0]
