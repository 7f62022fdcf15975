"""View: the part of a weight that is one matrix, the tensor to write and the measured operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from snc_client.operators import Matrix, Operator

Parts: TypeAlias = Sequence[str] | Mapping[str, int]


def _same(part: Tensor) -> Tensor:
    return part


@dataclass(frozen=True)
class View:
    """One matrix of a weight: ``pick`` selects a slice, ``lay`` views it, ``operator`` maps it.

    ``lay`` returns the tensor to multiply: always a view, 2-d where the memory allows it.
    """

    kind: str
    suffix: str = ""
    pick: Any = ...
    lay: Callable[[Tensor], Tensor] = _same
    operator: Callable[[Tensor], Operator] = Matrix
    note: str | None = None
    cappable: bool = True
    linear: bool = True
    """Whether it is known to be a linear map."""

    def part(self, weight: Tensor) -> Tensor:
        """Return this view's slice of the weight, in the parameter's own layout."""
        return weight if self.pick is ... else weight[self.pick]

    def piece(self, name: str, within: tuple[slice, ...]) -> View:
        """Return the view of a slice of this matrix: ``within`` indexes its stored dimensions."""
        whole = () if self.pick is ... else (self.pick,)
        pick = (*whole, *within)
        suffix = f"{self.suffix}[{name}]"
        note = None if self.linear else self.note
        return replace(self, suffix=suffix, pick=pick if len(pick) > 1 else pick[0], note=note)


def cut(view: View, weight: Tensor, parts: Parts, *, in_turns: bool = False) -> tuple[View, ...]:
    """Cut a matrix along its outputs into named parts, of equal size or of the sizes given.

    ``weight`` is the whole parameter: the matrix, or the stack that holds it. The parts lie one
    after the other, or take turns output by output (``in_turns``). Raises ValueError where the
    sizes do not add up to the number of outputs.
    """
    if not parts:
        return (view,)
    axis = 1 if view.lay is Tensor.t else 0
    outputs = view.part(weight).shape[axis]
    even = dict.fromkeys(parts, outputs // len(parts))
    sizes = dict(parts) if isinstance(parts, Mapping) else even
    if sum(sizes.values()) != outputs or min(sizes.values()) < 1 or len(sizes) != len(parts):
        raise ValueError(f"parts must add up to {outputs} outputs, got {sizes}")
    pieces, start = [], 0
    for place, (part, size) in enumerate(sizes.items()):
        span = slice(place, None, len(sizes)) if in_turns else slice(start, start + size)
        pieces.append(view.piece(part, (slice(None), span) if axis else (span,)))
        start += size
    return tuple(pieces)


def flat(weight: Tensor) -> Tensor:
    """Return out x rest as a view where memory allows it (channels_last too), else the weight.

    The order of the columns follows memory; singular values do not depend on it.
    """
    order = sorted(range(1, weight.ndim), key=weight.stride, reverse=True)
    try:
        return weight.permute(0, *order).view(weight.shape[0], -1)
    except RuntimeError:
        return weight


def flattened(weight: Tensor) -> Matrix:
    """Return out x rest as a matrix."""
    return Matrix(weight.flatten(1))
