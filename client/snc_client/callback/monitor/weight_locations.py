"""Device and identity of each weight, to detect weights that were moved or replaced."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import torch

from snc_client.layers import Layer

log = logging.getLogger("snc")


@dataclass(frozen=True, eq=False)
class Located:
    """The result of a lookup of weights: layer index -> device and identity."""

    devices: dict[int, torch.device]
    identities: dict[int, Hashable]
    missing: frozenset[int]
    """Layers that could not be looked up."""

    def changed(self, layers: Sequence[Layer]) -> bool:
        """Return whether a weight has been moved, replaced, retyped or removed since."""
        return any(identity(layers[i]) != seen for i, seen in self.identities.items())

    def explains(self, error: Exception, layers: Sequence[Layer]) -> bool:
        """Return whether looking the weights up again can help after ``error``."""
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return False
        return isinstance(error, LookupError) or self.changed(layers)

    def exchanged(self, layers: Sequence[Layer]) -> set[int]:
        """Return which weights are other tensors than before, or gone, or not known here."""
        now = map(identity, layers)
        return {i for i, seen in enumerate(now) if seen != self.identities.get(i)}


def locate(layers: Sequence[Layer], known_missing: Collection[int]) -> Located:
    """Look up the weight of every layer; log those that are missing and were not ``known_missing``.

    A weight on the meta device has no numbers: its layer counts as missing.
    """
    devices: dict[int, torch.device] = {}
    identities: dict[int, Hashable] = {}
    for i, layer in enumerate(layers):
        try:
            device = layer.weight().device
            if device.type == "meta":
                raise LookupError(f"layer {layer.name!r} must hold numbers, it is on meta")
        except LookupError as error:
            if i not in known_missing:
                log.warning("snc: not measured any more: %s", error)
        else:
            devices[i], identities[i] = device, identity(layer)
    return Located(devices, identities, frozenset(range(len(layers))) - devices.keys())


def identity(layer: Layer) -> Hashable:
    """Return a key that is equal while a layer's weight is the same tensor; None if missing."""
    try:
        weight, parameter = layer.weight(), layer.parameter()
    except LookupError:
        return None
    place = None if parameter is None else id(parameter)
    return weight.device, weight.dtype, type(weight), tuple(weight.shape), place
