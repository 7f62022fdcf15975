"""Weights that their module does not use as a matrix: gains of normalisations, lookup tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias, cast

from torch import Tensor, nn

from snc_client.layers.coverage import Layer
from snc_client.layers.place import Place
from snc_client.layers.reasons import GAINS, no_numbers
from snc_client.operators import Gain, Operator, Rows

Map: TypeAlias = Literal["gain", "rows"]
MAPS: Final = ("gain", "rows")
_Batch: TypeAlias = nn.modules.batchnorm._NormBase


def asked(place: Place, maps: Mapping[str, str]) -> str | None:
    """Return the map of the first pattern that matches a name of the weight, None without one.

    Biases get None: they are no maps.
    """
    if place.source.key != "weight":
        return None
    for pattern, what in maps.items():
        if any(fnmatchcase(name, pattern) for name in place.all_names):
            return what
    return None


def mapped(place: Place, what: str) -> Layer:
    """Return the layer of a weight that is measured as the map ``what``.

    Raises ValueError if it is not such a map.
    """
    if why := _misfit(place, what):
        raise ValueError(f"{place.name}: maps can say {what!r} {why}")
    read = place.reader(place.source.read, place.value.shape)
    over = _divisor(place)
    note = "looked up: the longest row, not sigma of the table" if what == "rows" else None
    if over is not None:
        note = "gain / sqrt(running_var + eps): what evaluation does"
    notes = ("frozen: measured, never written" if place.frozen else None, note)
    rows, columns = (place.value.shape[0], place.value[0].numel()) if what == "rows" else (1, 1)
    return Layer(
        name=place.name,
        kind=what,
        shape=tuple(place.value.shape),
        fan_out=rows,
        fan_in=columns,
        writable=not place.frozen,
        note="; ".join(filter(None, notes)) or None,
        names=tuple(place.all_names),
        cappable=over is None and not place.frozen,
        clip="rows" if what == "rows" else "entries",
        _weight=read,
        _operator=_operator(what, read, over),
        _parameter=place.reader(lambda module: cast(Tensor, module._parameters["weight"]),
                                place.value.shape),
    )  # fmt: skip


def _misfit(place: Place, what: str) -> str | None:
    if what not in MAPS:
        return f"only where that is one of {', '.join(MAPS)}"
    module = place.module
    if not place.source.direct:
        return "only of a weight that is stored as such"
    if why := no_numbers(place.value):
        return f"only of a dense weight: it is {why}"
    if what == "gain" and not isinstance(module, GAINS):
        return "only of torch's own normalisations: others may add 1 to their weight, or more"
    if what == "rows" and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "only of an Embedding"
    return None


def _operator(
    what: str, read: Callable[[], Tensor], over: Callable[[], Tensor] | None
) -> Callable[[], Operator]:
    if what == "rows":
        return lambda: Rows(read())
    return lambda: Gain(read(), None if over is None else over())


def _divisor(place: Place) -> Callable[[], Tensor] | None:
    """Return a reader of sqrt(running_var + eps) of a BatchNorm; None without a running_var."""
    module = place.module
    if not isinstance(module, _Batch) or module.running_var is None:
        return None

    def read(module: nn.Module) -> Tensor:
        batch = cast(_Batch, module)
        assert batch.running_var is not None
        return (batch.running_var.detach().float() + batch.eps).sqrt()

    return place.reader(read, module.running_var.shape)
