"""What became of a model's layers since they were listed: kept, changed, gone or added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from snc_client.layers import Coverage, Layer, Skipped


@dataclass(frozen=True, eq=False)
class Roll:
    """The layers of a model that was walked again, in the order in which they were known."""

    layers: tuple[Layer, ...]
    """Every layer that was ever known, so that places in a row stay; new ones follow. One that is
    gone, or cannot be measured any longer, raises LookupError when it is looked up."""
    resized: frozenset[str]
    """Layers of another shape than before: the same name, another matrix."""
    coverage: Coverage
    """What is measured now; what is gone is among the skipped, with the reason."""
    remarks: tuple[str, ...]
    """One sentence for each layer that is new, or written in another way than before."""


def called(known: Sequence[Layer], found: Coverage, step: int) -> Roll:
    """Compare the layers ``known`` with what is ``found`` now."""
    now = {layer.name: layer for layer in found.layers}
    reasons = {skipped.name: skipped.reason for skipped in found.skipped}
    layers, gone, resized, remarks = [], list[Skipped](), set[str](), list[str]()
    for layer in known:
        new = now.pop(layer.name, None)
        if new is None:
            why = reasons.get(layer.name.split("[")[0], "it is gone from the model")
            gone.append(Skipped(layer.name, layer.shape, why))
            layers.append(layer.without_weight(why))
            continue
        if not _alike(layer, new):
            resized.add(layer.name)
            remarks.append(
                f"{layer.name} had the shape {layer.shape}, it has {new.shape}: measured and held "
                f"from step {step} on, by a new reference"
            )
        elif (layer.writable, layer.note) != (new.writable, new.note):
            remarks.append(f"{layer.name} has changed: {new.note or 'it can be enforced'}")
        layers.append(new)
    added = list(now.values())
    remarks += [f"{layer.name} is new: measured and held from step {step} on" for layer in added]
    missing = {skipped.name for skipped in gone}
    measured = tuple(layer for layer in (*layers, *added) if layer.name not in missing)
    skipped = (*(x for x in found.skipped if x.name not in missing), *gone)
    coverage = replace(found, layers=measured, skipped=skipped)
    return Roll((*layers, *added), frozenset(resized), coverage, tuple(remarks))


def _alike(old: Layer, new: Layer) -> bool:
    return (old.shape, old.fan_out, old.fan_in) == (new.shape, new.fan_out, new.fan_in)
