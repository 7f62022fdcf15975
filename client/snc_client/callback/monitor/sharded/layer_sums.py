"""LayerSums: what a process adds to the sums of one layer, in one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.estimator.sharded_power import BANDS, Summand

# Places in "squares": sums of squares of entries, and how many processes could not give theirs.
FROBENIUS, MOVED, GRADIENT, NO_GRADIENT, UPDATE, NO_UPDATE = range(6)


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
        yield "squares", (6,)
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
    def lost(cls, form: Form, numbers: Tensor) -> LayerSums:
        """Return the record of a process that cannot give its share: no sum with it is a number."""
        values = {k: numbers.new_full(shape, math.nan) for k, shape in form.fields}
        return cls({**values, "lost": numbers.new_ones(1), "agreed": agreed(numbers)})

    @property
    def share(self) -> Summand:
        """Return the fields that an iteration needs."""
        narrow = {k: self.values[k].float() for k in ("x", "r", "bands", "torn")}
        return Summand(narrow["x"], narrow["r"], narrow["bands"], narrow["torn"])

    def packed(self, form: Form, dtype: torch.dtype) -> Tensor:
        """Return all numbers as one vector."""
        return torch.cat([self.values[name].reshape(-1).to(dtype) for name, _ in form.fields])


def unpacked(flat: Tensor, forms: Sequence[Form]) -> list[LayerSums]:
    """Return the records that a vector of sums holds, as views of it."""
    records, at = [], 0
    for form in forms:
        values = {}
        for name, shape in form.fields:
            size = math.prod(shape)
            values[name] = flat[at : at + size].view(shape)
            at += size
        records.append(LayerSums(values))
    return records


def agreed(numbers: Tensor) -> Tensor:
    """Return what shows whether all processes have the same two numbers: float32 [4]."""
    return torch.cat([numbers, numbers.square()])


def alike(sums: Tensor, processes: int) -> Tensor:
    """Return (0-d bool) whether they do: (sum c)^2 = p sum c^2 holds for equal numbers only.

    Every process finds the same answer, because it is that of the sums. Exact for p <= 2,048.
    """
    first, squares = sums.double().reshape(2, 2)
    equal: Tensor = (first.square() == processes * squares).all()
    return equal
