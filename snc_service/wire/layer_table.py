"""The layer table: the ordered layer names of a run, sent once and referenced by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from snc_service.wire.checks import (
    MAX_LAYER_NAME_BYTES,
    MAX_LAYERS,
    WireError,
    json_object,
    printable,
    shown,
    whole,
)


@dataclass(frozen=True)
class LayerSpec:
    """One measured weight: its state-dict key (or a slice of it), kind and shape."""

    name: str
    kind: str = "matrix"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        printable(self.name, "layers.name", max_bytes=MAX_LAYER_NAME_BYTES)
        printable(self.kind, "layers.kind", max_bytes=32)


@dataclass(frozen=True)
class LayerTable:
    """Layers in model order. Immutable; equal hashes mean equal tables."""

    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        if len(self.layers) > MAX_LAYERS:
            raise WireError("layers", f"must be at most {MAX_LAYERS}, got {len(self.layers)}")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise WireError("layers", "must not repeat a name")

    @classmethod
    def of_names(cls, names: Iterable[str]) -> LayerTable:
        """Build the table of a batch that lists its layer names inline, as the JSON form does."""
        return cls(tuple(LayerSpec(name) for name in names))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the layer names in order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def body(self) -> bytes:
        """Return the canonical JSON (sorted keys, no spaces, UTF-8) that is sent and hashed."""
        layers = [{"kind": x.kind, "name": x.name, "shape": list(x.shape)} for x in self.layers]
        text = json.dumps(
            {"layers": layers}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return text.encode("utf-8")

    @cached_property
    def hash(self) -> str:
        """Return the first 32 hex digits of the SHA-256 of `body`."""
        return hashlib.sha256(self.body).hexdigest()[:32]

    @classmethod
    def parse(cls, data: bytes) -> LayerTable:
        """Read a table from JSON. Raises `WireError` for anything else."""
        items = json_object(data, "layer table").get("layers")
        if not isinstance(items, list):
            raise WireError("layers", f"must be a list, got {shown(items)}")
        return cls(tuple(_layer(item) for item in items))


def _layer(item: object) -> LayerSpec:
    if not isinstance(item, dict):
        raise WireError("layers", f"must hold objects with name, kind and shape, got {shown(item)}")
    shape = item.get("shape", [])
    if not isinstance(shape, list) or len(shape) > 8:
        raise WireError("layers.shape", f"must be a list of at most 8 sizes, got {shown(shape)}")
    return LayerSpec(
        name=item.get("name"),  # type: ignore[arg-type] # checked by LayerSpec itself
        kind=item.get("kind", "matrix"),
        shape=tuple(whole(size, "layers.shape") for size in shape),
    )
