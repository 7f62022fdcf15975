"""LayerSums: what a process adds to the sums of one layer, in one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.callback.readback.metrics import NOT_MEASURED
from snc_client.estimator.sharded_power import BANDS, Sums

# Places in "squares": sums of squares of entries, and how many processes could not give theirs.
PLACES = 6
FROBENIUS, MOVED, GRADIENT, NO_GRADIENT, UPDATE, NO_UPDATE = range(PLACES)


@dataclass(frozen=True)
class Form:
    """The sizes of a record; equal on all processes, whatever lies on them."""

    vectors: int
    length: int
    torn: int
    proof: tuple[int, int] | None = None
    """Of the matrix that a certificate needs: W'W, or all of W."""

    @property
    def fields(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes, in the order of the memory."""
        yield "lost", (1,)
        yield "agreed", (4,)
        yield "bands", (BANDS,)
        yield "squares", (PLACES,)
        yield "r", (self.vectors, self.vectors)
        yield "x", (self.vectors, self.length)
        yield "torn", (self.torn, self.length)
        if self.proof is not None:
            yield "proof", self.proof

    @property
    def size(self) -> int:
        """Return how many numbers it holds."""
        return sum(math.prod(shape) for _, shape in self.fields)


@dataclass(frozen=True)
class LayerSums:
    """The numbers of one layer: of this process before the sum, of all of them after it."""

    values: Mapping[str, Tensor]

    @classmethod
    def lost(cls, form: Form, head: Mapping[str, Tensor]) -> LayerSums:
        """Return the record of a process that cannot give its share: no sum with it is a number.

        ``head`` has what it gives all the same: "lost" and "agreed".
        """
        one = head["lost"]
        values = {k: one.new_full(shape, math.nan) for k, shape in form.fields if k not in head}
        return cls({**values, **head})

    @property
    def share(self) -> Sums:
        """Return the fields that an iteration needs."""
        x, r, bands, torn = (self.values[k].float() for k in ("x", "r", "bands", "torn"))
        return Sums(x, r, bands, torn)

    def packed(self, form: Form, dtype: torch.dtype) -> list[Tensor]:
        """Return all numbers, 1-d, in the order of the memory."""
        return [self.values[name].reshape(-1).to(dtype) for name, _ in form.fields]


def unpacked(flat: Tensor, forms: Sequence[Form]) -> list[LayerSums]:
    """Return the records that a vector of sums holds, as views of it."""
    sizes = [math.prod(shape) for form in forms for _, shape in form.fields]
    parts = iter(torch.split(flat, sizes))
    return [
        LayerSums({name: next(parts).view(shape) for name, shape in form.fields}) for form in forms
    ]


def agreed(numbers: Tensor) -> Tensor:
    """Return what shows whether all processes have the same numbers, float32 [L, 2]: [L, 4]."""
    return torch.cat([numbers, numbers.square()], 1)


def alike(sums: Tensor, processes: Tensor) -> Tensor:
    """Return (bool [L]) whether they do: (sum c)^2 = p sum c^2 holds for equal numbers only.

    ``sums`` [L, 4] of so many ``processes``, float64 [L]. Every process finds the same answer,
    because it is that of the sums. Exact for p <= 2,048. A process that gave no number at all
    does not show a difference.
    """
    first, squares = torch.split(sums.double(), 2, 1)
    same = (first.square() == processes[:, None] * squares) | first.isnan()
    equal: Tensor = same.all(1)
    return equal


def frobenius(sums: Sequence[LayerSums]) -> Tensor:
    """Return the norm of each matrix, float32 [L]."""
    return torch.stack([x.values["squares"][FROBENIUS] for x in sums]).sqrt().float()


def norms_of(sums: Sequence[LayerSums], sigma: Tensor) -> dict[str, Tensor]:
    """Return the norms of each layer, float32 [L], by the name of their metric."""
    squares = torch.stack([x.values["squares"] for x in sums], 1)
    size, gradient, update = (squares[k].sqrt().float() for k in (FROBENIUS, GRADIENT, UPDATE))
    rank = torch.where((sigma == 0) & (size == 0), 0.0, (size / sigma).square())
    return {
        "frobenius": size,
        "stable_rank": rank,
        "grad_norm": torch.where(squares[NO_GRADIENT] > 0, NOT_MEASURED, gradient),
        "update_norm": torch.where(squares[NO_UPDATE] > 0, NOT_MEASURED, update),
    }
