"""LoRA pairs: the measured matrix is the product B A that is added to a weight."""

from __future__ import annotations

from torch import Tensor

from snc_client.layers.coverage import Layer
from snc_client.layers.place import Place
from snc_client.layers.reasons import no_numbers
from snc_client.operators import LowRank


def lora_layer(b: Place, a: Place) -> Layer:
    """Return the layer of a LoRA pair: sigma of B A, enforced by sqrt f on each factor.

    If one factor is frozen, the other one is multiplied by f.
    Convolutional pairs (A with the kernel, B 1x1) are the product of their flattened matrices.
    """
    read_b = b.reader(b.source.read, b.value.shape)
    read_a = a.reader(a.source.read, a.value.shape)
    rows, columns = b.value.shape[0], a.value[0].numel()
    trained = [(x, read) for x, read in ((b, read_b), (a, read_a)) if not x.frozen]
    written = [read for _, read in trained]
    note = f"product with {a.name}, enforced through {' and '.join(x.name for x, _ in trained)}"
    return Layer(
        name=f"{b.name}[BA]",
        kind="lora",
        shape=(rows, columns),
        fan_out=rows,
        fan_in=columns,
        writable=bool(trained),
        note=note if trained else f"frozen: measured, never written; product with {a.name}",
        names=tuple(f"{name}[BA]" for name in b.all_names),
        _weight=written[0] if written else read_b,
        _partner=written[1] if len(written) == 2 else None,
        _operator=lambda: LowRank(read_b().flatten(1), read_a().flatten(1)),
    )


def lora_pairs(places: list[Place]) -> dict[str, Place | None]:
    """Return the A of every B, by B's name, and None by the name of every such A."""
    named = {place.name: place for place in places}
    pairs: dict[str, Place | None] = {}
    for name, b in named.items():
        a = named.get(_partner(name))
        if a is not None and a is not b and _fit(b.value, a.value):
            pairs[name], pairs[a.name] = a, None
    return pairs


def _partner(name: str) -> str:
    return name.replace("lora_B", "lora_A").replace("lora_embedding_B", "lora_embedding_A")


def _fit(b: Tensor, a: Tensor) -> bool:
    if no_numbers(b) or no_numbers(a) or min(b.ndim, a.ndim) < 2 or not b.numel() * a.numel():
        return False
    return b[0].numel() == a.shape[0]
