"""A weight's place in a model, and the layers that look it up there at each call."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snc_client.layers.coverage import Layer
from snc_client.layers.sources import Source
from snc_client.layers.view import View
from snc_client.operators import Operator

Read: TypeAlias = Callable[[nn.Module], Tensor]


class Place:
    """One weight while the model is walked: its module, its names and its source.

    It holds tensors, so the layers made from it keep no reference to it.

    ``name`` and ``names`` are canonical; ``path`` is the key that the model itself uses, and
    ``aliases`` are such keys where they differ.
    """

    def __init__(
        self, root: nn.Module, path: str, name: str, module: nn.Module, source: Source
    ) -> None:
        self.root, self.path, self.name = root, path, name
        self.module, self.source = module, source
        self.names: list[str] = []
        self.aliases: list[str] = []
        self.parameters: list[nn.Parameter] = []

    @property
    def paths(self) -> list[str]:
        """Return the names of the modules that hold the weight."""
        return [name.rpartition(".")[0] for name in self.all_names]

    @property
    def parent(self) -> tuple[nn.Module | None, str]:
        """Return the module that holds the weight's module, and the name by which it does."""
        above, _, child = self.path.rpartition(".")[0].rpartition(".")
        return (self.root.get_submodule(above) if child else None), child

    @property
    def all_names(self) -> list[str]:
        """Return every name of the weight that a pattern may match."""
        return [*self.names, *self.aliases]

    @cached_property
    def value(self) -> Tensor:
        """Return the weight as the forward pass uses it now."""
        first = self.source.parameters[0]
        # Nothing can be read of a lazy parameter, not even its shape.
        return first if is_lazy(first) else self.source.read(self.module)

    @property
    def memory(self) -> object:
        """Return a key of the weight's memory, equal for all names of one weight."""
        first = self.source.parameters[0]
        if self.source.flat is not None:
            return self.source.flat.key
        plain = self.source.direct and not is_lazy(first) and type(first.detach()) is Tensor
        if not plain or first.layout != torch.strided or first.is_meta or first.numel() == 0:
            return tuple(map(id, self.source.parameters))
        return str(first.device), first.data_ptr(), first.numel(), first.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape; () while it is not known."""
        return () if is_lazy(self.value) else tuple(self.value.shape)

    @property
    def size(self) -> int:
        """Return the number of scalars behind the weight."""
        parameters = self.source.parameters
        if self.source.flat is not None:
            return math.prod(self.source.flat.shape)
        return sum(
            0 if is_lazy(parameter) else getattr(parameter, "ds_numel", parameter.numel())
            for parameter in parameters
        )

    @property
    def frozen(self) -> bool:
        """Return whether any of its parameters, under any of its names, is not trained."""
        return not all(parameter.requires_grad for parameter in self.parameters)

    def reader(self, read: Read, shape: torch.Size | None) -> Callable[[], Tensor]:
        """Return a function that looks the module up in the model and reads a tensor from it.

        It raises LookupError for a tensor of another ``shape``, if one is given.
        """
        root, name, path = self.root, self.name, self.path.split(".")[:-1]

        def look_up() -> Tensor:
            try:
                module: Any = root
                for child in path:  # a third of the time that get_submodule takes, at each step
                    module = module._modules[child]
                tensor = read(module)
            except (AttributeError, KeyError):
                raise LookupError(
                    f"layer {name!r} must still be in the model, it is gone"
                ) from None
            if shape is not None and tensor.shape != shape:
                want, got = tuple(shape), tuple(tensor.shape)
                raise LookupError(f"layer {name!r} must have the shape {want}, got {got}")
            return tensor

        return look_up


def layer(place: Place, view: View) -> Layer:
    """Return the layer of one matrix of a weight."""
    source, part = place.source, view.part(place.value)
    rows, columns = view.operator(view.lay(part)).shape
    read = place.reader(source.read, place.value.shape)
    weight = _written(place, view)
    notes = (
        "frozen: measured, never written" if place.frozen else None,
        source.note,
        "never written: one scale for all its parts" if source.written and not weight else None,
        view.note,
    )

    def operator() -> Operator:
        return view.operator(view.lay(view.part(read())))

    return Layer(
        name=place.name + view.suffix,
        kind=view.kind,
        shape=tuple(part.shape),
        fan_out=rows,
        fan_in=columns,
        writable=weight is not None and not place.frozen,
        note="; ".join(filter(None, notes)) or None,
        names=tuple(name + view.suffix for name in place.all_names),
        linear=view.linear,
        cappable=source.direct and view.cappable and not place.frozen,
        _weight=weight or read,
        _operator=operator,
        _parameter=place.reader(_kept(source.key), place.value.shape) if source.direct else None,
        _part=view.part,
    )


def _kept(key: str) -> Read:
    return lambda module: cast(Tensor, module._parameters[key])


def _written(place: Place, view: View) -> Callable[[], Tensor] | None:
    """Return a reader of the tensor to multiply, None where nothing scales this view alone."""
    if place.source.written is None:
        return None
    whole = place.source.written(place.module)
    read = place.reader(place.source.written, whole.shape)
    if place.source.direct:
        return lambda: view.lay(view.part(read()))
    if view.pick is ...:
        return read
    # A scale with one number per row of its weight can be sliced like the weight.
    by_row = whole.ndim > 0 and whole.shape[0] == place.value.shape[0]
    return (lambda: view.part(read())) if by_row and not isinstance(view.pick, tuple) else None
