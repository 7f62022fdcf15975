"""Convolutions as the linear maps that they are, on inputs of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from snc_client.operators.entries import largest, plain

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SCATTER: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution, one number (or pair) per spatial dimension.

    ``pads`` are (before, after); ``mode`` is ``zeros``, ``reflect``, ``replicate`` or ``circular``.
    """

    grid: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"
    limit: tuple[int, ...] | None = None
    """At most so many outputs; None: as many as fit."""

    @property
    def padded(self) -> tuple[int, ...]:
        """Return the input's size after padding."""
        return tuple(h + a + b for h, (a, b) in zip(self.grid, self.pads, strict=True))

    @property
    def can_pad(self) -> bool:
        """Return whether the input is large enough to be read again in its padding."""
        spare = {"reflect": 1, "circular": 0}.get(self.mode)
        axes = zip(self.grid, self.pads, strict=True)
        return spare is None or all(max(pair) + spare <= h for h, pair in axes)

    def outputs(self, kernel: Sequence[int]) -> tuple[int, ...]:
        """Return the output's size for a kernel of this size; less than 1 where none fits."""
        axes = zip(self.padded, kernel, self.dilation, self.stride, strict=True)
        found = tuple((h - d * (k - 1) - 1) // s + 1 for h, k, d, s in axes)
        return tuple(map(min, found, self.limit or found))


class Convolution:
    """The linear map of a convolution on inputs of ``geometry.grid``: (in*grid) -> (out*...).

    Products have the dtype of the vectors: float32 or float64.

    ``weight`` is (out, in/groups, *kernel). Its largest singular value is the Lipschitz constant of
    the layer at this grid; it grows slightly with the grid (to within 2-8 % of the limit at 16).
    One product costs one forward of b samples at the grid.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self._weight, self.geometry = plain(weight), geometry
        kernel = tuple(weight.shape[2:])
        self._inputs = (weight.shape[1] * geometry.groups, *geometry.grid)
        self._outputs = (weight.shape[0], *geometry.outputs(kernel))
        if min(self._outputs[1:]) < 1 or not geometry.can_pad:
            raise ValueError(f"grid must hold the kernel and its padding, got {geometry.grid}")
        axes = zip(
            geometry.padded, self._outputs[1:], kernel, geometry.stride, geometry.dilation,
            strict=True,
        )  # fmt: skip
        # Inputs left at the far end, where the stride leaves no room for the kernel.
        self._unread = [h - (o - 1) * s - d * (k - 1) - 1 for h, o, k, s, d in axes]
        self.shape: tuple[int, int] = (math.prod(self._outputs), math.prod(self._inputs))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return (self._weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the convolution of the b inputs in the columns of v (in*grid, b)."""
        x = self._pad(v.t().reshape(-1, *self._inputs))
        y = _CONVOLVE[len(self._unread)](x, self._weight.to(v.dtype), **self._keywords())
        for axis, size in enumerate(self._outputs[1:], start=2):
            y = y.narrow(axis, 0, size)
        return y.flatten(1).t()

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the adjoint: the input gradients of the b output gradients in the columns of u."""
        y = u.t().reshape(-1, *self._outputs)
        scatter = _SCATTER[len(self._unread)]
        x = scatter(y, self._weight.to(u.dtype), output_padding=self._unread, **self._keywords())
        return self._unpad(x).flatten(1).t()

    def amax(self) -> Tensor:
        """Return the largest absolute entry of the kernel; NaN if there is a NaN."""
        return largest(self._weight)

    def _keywords(self) -> dict[str, object]:
        g = self.geometry
        return {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}

    def _pad(self, x: Tensor) -> Tensor:
        flat = [size for pair in reversed(self.geometry.pads) for size in pair]
        mode = "constant" if self.geometry.mode == "zeros" else self.geometry.mode
        return F.pad(x, flat, mode=mode) if any(flat) else x

    def _unpad(self, x: Tensor) -> Tensor:
        """Apply the adjoint of `_pad`: add the border to the inputs that it was read from."""
        for axis, (before, after) in enumerate(self.geometry.pads, start=2):
            x = _fold(x, axis, before, after, self.geometry.mode)
        return x


class Adjoint:
    """The transpose of an operator. A transposed convolution is the adjoint of a convolution."""

    def __init__(self, operator: Convolution) -> None:
        self.convolution = self._operator = operator
        self.shape: tuple[int, int] = (operator.shape[1], operator.shape[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return self._operator.tensors

    def matmul(self, v: Tensor) -> Tensor:
        """Return the operator's ``rmatmul``."""
        return self._operator.rmatmul(v)

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the operator's ``matmul``."""
        return self._operator.matmul(u)

    def amax(self) -> Tensor:
        """Return the operator's ``amax``."""
        return self._operator.amax()


def _fold(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Undo one dimension's padding, adding each border to the places it was read from.

    Slices only: the backward pass of torch's padding adds with float atomics on CUDA, and ranks
    would no longer agree bit for bit.
    """
    size = x.shape[axis] - before - after
    inside = x.narrow(axis, before, size)
    if mode == "zeros" or before == after == 0:
        return inside
    inside = inside.clone()
    for border, width, at_end in (
        (x.narrow(axis, 0, before), before, False),
        (x.narrow(axis, before + size, after), after, True),
    ):
        if mode == "replicate":
            inside.narrow(axis, size - 1 if at_end else 0, 1).add_(border.sum(axis, keepdim=True))
        elif mode == "reflect":
            inside.narrow(axis, size - 1 - width if at_end else 1, width).add_(border.flip(axis))
        else:
            inside.narrow(axis, 0 if at_end else size - width, width).add_(border)
    return inside
