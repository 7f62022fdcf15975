"""What became of a model's layers since they were listed: kept, changed, gone or added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.parameter import is_lazy

from snc_client.layers import Coverage, Layer, Skipped


@dataclass(frozen=True, eq=False)
class Roll:
    """The layers of a model that was walked again, in the order in which they were known."""

    layers: tuple[Layer, ...]
    """Every layer that was ever known, so that places in a row stay; new ones follow. One that is
    gone is the old layer: it raises LookupError when it is looked up."""
    coverage: Coverage
    """What is measured now; what is gone is among the skipped, with the reason."""
    remarks: tuple[str, ...]
    """One sentence for each layer that is new, or written in another way than before."""


def called(known: Sequence[Layer], found: Coverage, step: int) -> Roll:
    """Compare the layers ``known`` with what is ``found`` now."""
    now = {layer.name: layer for layer in found.layers}
    reasons = {skipped.name: skipped.reason for skipped in found.skipped}
    layers, gone, remarks = [], list[Skipped](), list[str]()
    for layer in known:
        new = now.pop(layer.name, None)
        if new is not None and _alike(layer, new):
            layers.append(new)
            if (layer.writable, layer.note) != (new.writable, new.note):
                remarks.append(f"{layer.name} has changed: {new.note or 'it can be enforced'}")
            continue
        layers.append(layer)
        why = reasons.get(layer.name.split("[")[0], _why(layer, new))
        gone.append(Skipped(layer.name, layer.shape, why))
    added = list(now.values())
    remarks += [
        f"{layer.name} is new: measured and held from step {step} on, and reported to the service "
        "when the job is started again"
        for layer in added
    ]
    missing = {skipped.name for skipped in gone}
    measured = tuple(layer for layer in (*layers, *added) if layer.name not in missing)
    skipped = (*(x for x in found.skipped if x.name not in missing), *gone)
    coverage = replace(found, layers=measured, skipped=skipped)
    return Roll((*layers, *added), coverage, tuple(remarks))


def weights(model: nn.Module) -> frozenset[object]:
    """Return what changes when a weight of the model comes, goes, or is frozen. Cheap."""
    return frozenset(
        (name, () if is_lazy(p) else p.shape, p.requires_grad)
        for name, p in model.named_parameters(remove_duplicate=False)
    )


def _alike(old: Layer, new: Layer) -> bool:
    return (old.shape, old.fan_out, old.fan_in) == (new.shape, new.fan_out, new.fan_in)


def _why(layer: Layer, new: Layer | None) -> str:
    if new is None:
        return "it is gone from the model"
    return f"it has the shape {new.shape} now, it had {layer.shape}"
