"""Dense weights: one matrix, a stack of blocks, a product of two matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from snc_client.operators.entries import largest, plain
from snc_client.precision import in_float64

# A float32 sum of k terms of one sign errs by up to 1e-8 k, and sigma would be above the norm by
# that. For one matrix libraries sum in blocks, and 4,096 terms lose 3e-6 at most; where few columns
# come out, or many matrices at once, they sum one by one, and 128 terms lose 1.3e-6. Longer sums
# are made of pieces.
TERMS, PIECE = 4096, 256
TERMS_ONE_BY_ONE = 128
NARROW = 16  # columns
# Where at most 64 columns come out, 4,096 equal terms lost 2.7e-6 in both products together.
# Libraries for other CPUs lose more: the estimator lowers sigma for that.
FEW_COLUMNS, TERMS_OF_FEW = 64, 1024
AT_ONCE = 1 << 16  # rows of a narrow table that are copied to float64 at a time


class Matrix:
    """A weight (m, n) as it lies in memory, also a transposed view: float32 is never copied.

    Weights of another dtype are converted at each product: in float16 or bfloat16 the *vectors*
    would lose the digits that sigma needs. A float64 entry beyond float32's range becomes infinite.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2:
            raise ValueError(f"weight must have 2 dimensions, got shape {tuple(weight.shape)}")
        self.weight = plain(weight)
        self.shape: tuple[int, int] = (weight.shape[0], weight.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return (self.weight,)

    @property
    def plain(self) -> Tensor | None:
        """Return the weight where one float32 product with it has the digits of `matmul`."""
        short = min(self.shape) >= NARROW and max(self.shape) <= TERMS
        return self.weight if short and self.weight.dtype == torch.float32 else None

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
        return largest(self.weight)


class BlockDiagonal:
    """Blocks (g, m, n) that share no input and no output: (g*m, g*n), sigma is the largest one's.

    The groups of a convolution are such blocks. Flattening such a weight to (g*m, n) instead mixes
    unrelated groups and overstates sigma, up to sqrt(g) times.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 3:
            raise ValueError(f"weight must have 3 dimensions, got shape {tuple(weight.shape)}")
        self.weight = plain(weight)
        g, m, n = weight.shape
        self.shape: tuple[int, int] = (g * m, g * n)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
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
        return largest(self.weight)


class LowRank:
    """The product B A of B (m, r) and A (r, n), never formed, such as that of a LoRA pair.

    ``factor`` multiplies it.
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
        """Return the tensors that a product reads."""
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

        R_B R_A' of the QR factors, in float64 where there is float64. The second, 0-d, bounds the
        rounding error in the 2-norm: (m + n) r^2 u ||B||_F ||A||_F exceeds that of Householder's QR
        and of the product (Higham, theorem 19.4, with c = 4).
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


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (..., b, k) times right (..., k, n), float32, to 3e-6 however long k is."""
    terms, narrow, stacked = right.shape[-2], right.shape[-1] < NARROW, right.ndim > 2
    most = TERMS_OF_FEW if right.shape[-1] <= FEW_COLUMNS else TERMS
    if terms <= (TERMS_ONE_BY_ONE if narrow or stacked else most):
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
