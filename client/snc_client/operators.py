"""Linear maps as the estimator sees them: a weight, multiplied with a block of vectors.

Every operator has ``shape`` (m, n), ``matmul`` (n, b) -> (m, b), ``rmatmul`` (m, b) -> (n, b), both
in float32 whatever the weight's dtype, ``amax``, a 0-d float32 on the weight's device, whose
exponent tells the estimator how to scale, and ``tensors``, what its products read: a recorded graph
is good while these keep their addresses. Nothing here waits for the device, draws a random number
or records a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from snc_client.precision import SMALLEST_NORMAL, flushes, in_float64

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SCATTER: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}

# A float32 sum of k terms of one sign errs by up to 1e-8 k, and sigma would be above the norm by
# that. For one matrix libraries sum in blocks, and 4,096 terms lose 3e-6 at most; where few columns
# come out, or many matrices at once, they sum one by one, and 128 terms lose 1.3e-6. Longer sums
# are made of pieces.
TERMS, PIECE = 4096, 256
TERMS_ONE_BY_ONE = 128
NARROW = 16  # columns
AT_ONCE = 1 << 16  # rows of a narrow table that are copied to float64 at a time


class Matrix:
    """A weight (m, n) as it lies in memory: float32 is never copied, a transposed view is fine.

    Weights of another dtype are converted at each product: in float16 or bfloat16 the *vectors*
    would lose the digits that sigma needs. A float64 entry beyond float32's range becomes infinite.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2:
            raise ValueError(f"weight must have 2 dimensions, got shape {tuple(weight.shape)}")
        self.weight = _plain(weight)
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (self.weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return W v for a block v (n, b)."""
        # Transposed, because the CPU's library is 1.5 (b = 16) to 4 times (b = 8) slower with the
        # block on the right.
        return _product(v.mT, self.weight.mT).mT

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return W' u for a block u (m, b)."""
        return _product(u.mT, self.weight).mT

    def amax(self) -> Tensor:
        """Return the largest absolute entry; NaN if there is a NaN."""
        return _amax(self.weight)


class BlockDiagonal:
    """Blocks (g, m, n) that share no input and no output: (g*m, g*n), sigma is the largest one's.

    This is what the groups of a convolution are. Flattening such a weight to (g*m, n) instead mixes
    unrelated groups and overstates sigma, up to sqrt(g) times.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 3:
            raise ValueError(f"weight must have 3 dimensions, got shape {tuple(weight.shape)}")
        self.weight = _plain(weight)
        g, m, n = weight.shape
        self.shape: tuple[int, int] = (g * m, g * n)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (self.weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return W v for a block v (g*n, b)."""
        g, _, n = self.weight.shape
        return _side_by_side(_product(v.reshape(g, n, -1).mT, self.weight.mT))

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return W' u for a block u (g*m, b)."""
        g, m, _ = self.weight.shape
        return _side_by_side(_product(u.reshape(g, m, -1).mT, self.weight))

    def amax(self) -> Tensor:
        """Return the largest absolute entry; NaN if there is a NaN."""
        return _amax(self.weight)


class LowRank:
    """The product B A of B (m, r) and A (r, n), never formed: what a LoRA pair adds to a weight.

    ``factor`` times that, where one is given.
    """

    def __init__(self, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
        self._left, self._right, self._factor = Matrix(left), Matrix(right), factor
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"B and A must share their inner size, got {tuple(left.shape)} and "
                f"{tuple(right.shape)}"
            )
        self.shape: tuple[int, int] = (left.shape[0], right.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (*self._left.tensors, *self._right.tensors)

    def matmul(self, v: Tensor) -> Tensor:
        """Return B (A v) for a block v (n, b)."""
        return self._left.matmul(self._right.matmul(self._factor * v))

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return A' (B' u) for a block u (m, b)."""
        return self._right.rmatmul(self._left.rmatmul(self._factor * u))

    def amax(self) -> Tensor:
        """Return the product of the two largest absolute entries: the scale of an entry of B A."""
        return self._left.amax() * self._right.amax() * self._factor

    def frobenius(self) -> Tensor:
        """Return the Frobenius norm of B A, 0-d: its square is the trace of (B'B)(A A')."""
        b, a = self._left.weight.float(), self._right.weight.float()
        return ((b.mT @ b) * (a @ a.mT)).sum().clamp(min=0).sqrt() * self._factor

    def small(self) -> tuple[Tensor, Tensor]:
        """Return an r x r matrix with the singular values of the product, and its error's bound.

        R_B R_A' of the QR factors, in float64 where there is float64. The second, 0-d, bounds in
        the 2-norm what rounding can have changed: (m + n) r^2 u ||B||_F ||A||_F is more than
        Householder's QR and the product lose (Higham, theorem 19.4, with c = 4).
        """
        if self._left.weight.device.type == "mps":
            b, a, shift = self._left.weight.float(), self._right.weight.mT.float(), 0
        else:
            (b, up), (a, more) = in_float64(self._left.weight), in_float64(self._right.weight)
            a, shift = a.mT, up + more
        # The factors come near one each, so that no product leaves the range.
        scales = [torch.where(x.abs().amax() > 0, x.abs().amax(), 1.0) for x in (b, a)]
        b, a = b / scales[0], a / scales[1]
        r_b, r_a = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a, mode="r").R
        scale = scales[0] * scales[1] * (self._factor * 2.0**-shift)
        sizes = torch.linalg.vector_norm(b) * torch.linalg.vector_norm(a)
        lost = 4 * (sum(self.shape)) * b.shape[1] ** 2 * torch.finfo(b.dtype).eps
        return r_b @ r_a.mT * scale, sizes * scale * lost


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, one number (or pair) per spatial dimension.

    ``pads`` are (before, after); ``mode`` is ``zeros``, ``reflect``, ``replicate`` or ``circular``.
    """

    grid: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"
    limit: tuple[int, ...] | None = None
    """At most so many outputs; None: as many as the kernel finds."""

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
    """The map that a convolution really is, on inputs of ``geometry.grid``: (in*grid) -> (out*...).

    ``weight`` is (out, in/groups, *kernel). Its largest singular value is the Lipschitz constant of
    the layer at this grid; it grows slightly with the grid (to within 2-8 % of the limit at 16).
    One product costs one forward of b samples at the grid.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self._weight, self.geometry = _plain(weight), geometry
        kernel = tuple(weight.shape[2:])
        self._inputs = (weight.shape[1] * geometry.groups, *geometry.grid)
        self._outputs = (weight.shape[0], *geometry.outputs(kernel))
        if min(self._outputs[1:]) < 1 or not geometry.can_pad:
            raise ValueError(f"grid must hold the kernel and its padding, got {geometry.grid}")
        axes = zip(
            geometry.padded, self._outputs[1:], kernel, geometry.stride, geometry.dilation,
            strict=True,
        )  # fmt: skip
        # What is left at the far end, where a stride finds no place for the kernel.
        self._unread = [h - (o - 1) * s - d * (k - 1) - 1 for h, o, k, s, d in axes]
        self.shape: tuple[int, int] = (math.prod(self._outputs), math.prod(self._inputs))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (self._weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the convolution of the b inputs in the columns of v (in*grid, b)."""
        x = self._pad(v.t().reshape(-1, *self._inputs))
        y = _CONVOLVE[len(self._unread)](x, self._weight.float(), **self._keywords())
        for axis, size in enumerate(self._outputs[1:], start=2):
            y = y.narrow(axis, 0, size)
        return y.flatten(1).t()

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the adjoint: what the b output gradients in the columns of u send to the input."""
        y = u.t().reshape(-1, *self._outputs)
        scatter = _SCATTER[len(self._unread)]
        x = scatter(y, self._weight.float(), output_padding=self._unread, **self._keywords())
        return self._unpad(x).flatten(1).t()

    def amax(self) -> Tensor:
        """Return the largest absolute entry of the kernel; NaN if there is a NaN."""
        return _amax(self._weight)

    def _keywords(self) -> dict[str, object]:
        g = self.geometry
        return {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}

    def _pad(self, x: Tensor) -> Tensor:
        flat = [size for pair in reversed(self.geometry.pads) for size in pair]
        mode = "constant" if self.geometry.mode == "zeros" else self.geometry.mode
        return F.pad(x, flat, mode=mode) if any(flat) else x

    def _unpad(self, x: Tensor) -> Tensor:
        """Apply the adjoint of `_pad`: what fell on the border goes back to where it was read."""
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
        """Return what a product reads."""
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


class Gain:
    """A diagonal matrix, seen as the one number that is its norm: max |gain|, exactly.

    ``over`` (of the gain's shape) divides it first: what a BatchNorm in evaluation mode does.
    """

    shape: tuple[int, int] = (1, 1)

    def __init__(self, weight: Tensor, over: Tensor | None = None) -> None:
        self.weight, self._over = _plain(weight), over

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (self.weight,) if self._over is None else (self.weight, self._over)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the norm times v (1, b)."""
        return self.amax() * v

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the norm times u (1, b)."""
        return self.amax() * u

    def amax(self) -> Tensor:
        """Return the norm; NaN if there is a NaN."""
        return _amax(self.weight if self._over is None else self.weight / self._over)

    def upper(self) -> Tensor:
        """Return a bound of the norm, 0-d float32, inf where it is not finite: up by 2^-20."""
        return _upper(self.amax() * (1 + 2.0**-20))


class Rows:
    """A table (rows, d) that is looked up, seen as one number: the norm of its longest row.

    That is what a single index can give; the spectral norm is for a dense product with the table.
    """

    shape: tuple[int, int] = (1, 1)

    def __init__(self, weight: Tensor) -> None:
        self.weight = _plain(weight)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what a product reads."""
        return (self.weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the norm times v (1, b)."""
        return self.amax() * v

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the norm times u (1, b)."""
        return self.amax() * u

    def amax(self) -> Tensor:
        """Return the norm of the longest row; NaN if there is a NaN. One read and a copy."""
        return row_norms(self.weight).amax()

    def upper(self) -> Tensor:
        """Return a bound of it, 0-d float32, inf where it is not finite: up by (d + 8) * 2^-24."""
        entries = self.weight.shape[1]
        return _upper(self.amax() * (1 + (entries + 8) * 2.0**-24), entries)


Operator: TypeAlias = Matrix | BlockDiagonal | LowRank | Convolution | Adjoint | Gain | Rows


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of each row, float32 [m], at any scale of the weight."""
    mantissa, exponent = torch.frexp(_amax(weight))
    exponent = torch.where(mantissa.isfinite(), exponent, 0).clamp(-120, 120)
    one = torch.ones_like(mantissa)
    scaled = weight.float() * torch.ldexp(one, -exponent)
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=-1) * torch.ldexp(one, exponent)
    return norms


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (..., b, k) times right (..., k, n), float32, to 3e-6 however long k is."""
    terms, narrow, stacked = right.shape[-2], right.shape[-1] < NARROW, right.ndim > 2
    if terms <= (TERMS_ONE_BY_ONE if narrow or stacked else TERMS):
        return left @ right.float()
    wide = torch.float32 if right.device.type == "mps" else torch.float64
    if narrow and terms <= AT_ONCE:
        return (left.to(wide) @ right.to(wide)).float()
    each = wide if narrow else torch.float32
    size = AT_ONCE if narrow else TERMS_ONE_BY_ONE if stacked else PIECE
    parts = zip(torch.split(left, size, -1), torch.split(right, size, -2), strict=True)
    total = torch.zeros((), dtype=wide, device=right.device)
    for columns, rows in parts:
        total = total + (columns.to(each) @ rows.to(each)).to(wide)
    return total.float()


def _side_by_side(blocks: Tensor) -> Tensor:
    """Return (g, b, k) as (g*k, b), each column in one piece of memory, as after a `_product`."""
    return blocks.transpose(0, 1).flatten(1).mT


def _upper(norm: Tensor, entries: int = 1) -> Tensor:
    """Return a float32 norm of some entries as a bound: inf for NaN, more where zeros may be none.

    A CPU that flushes takes each entry below 2^-126 for zero.
    """
    if norm.device.type == "cpu" and flushes():
        norm = norm + math.sqrt(entries) * 2 * SMALLEST_NORMAL
    return torch.where(norm.isnan(), math.inf, norm)


def _plain(weight: Tensor) -> Tensor:
    return weight.detach() if weight.requires_grad else weight


def _amax(weight: Tensor) -> Tensor:
    """Return max |w| without a copy of the weight; `aminmax` passes NaN on."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).float()


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
