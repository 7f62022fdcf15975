"""The b x b algebra as Triton kernels: one program per layer, one launch for all layers.

The same Jacobi sweeps as in `jacobi`, and the Cholesky factor that `ritz` takes from LAPACK, in
registers. As tensor operations a sweep is about 400 launches; this is one for all five. They do not
wait and allocate only the results, so both can be captured in a graph. Run so far in Triton's
interpreter on a CPU, not yet on a GPU: `solvers` checks them once per device and falls back where
they fail.
"""

# No `from __future__ import annotations`: Triton reads tl.constexpr from the signature.

import torch
import triton
import triton.language as tl
from torch import Tensor

from snc_client.estimator.jacobi import SWEEPS, ascending

LEAST = 16  # the smallest matrices that tl.dot multiplies


def eigh(g_KBB: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (ascending) and eigenvectors (columns), as `jacobi.eigh` does; float32."""
    g = g_KBB.float().contiguous()
    values, z = torch.empty_like(g[..., 0]), torch.empty_like(g)
    size = _size(g)
    rounds = SWEEPS * (size - 1)
    _rotate[(g.shape[0],)](g, values, z, g.shape[-1], SIZE=size, ROUNDS=rounds, num_warps=1)
    return ascending(values, z)


def inverse_factor(c_KBB: Tensor) -> Tensor:
    """Return L^-1 of C = L L', lower triangular; the identity where C is not positive definite."""
    c = c_KBB.float().contiguous()
    inverse = torch.empty_like(c)
    _eliminate[(c.shape[0],)](c, inverse, c.shape[-1], SIZE=_size(c), num_warps=1)
    return inverse


def _size(x: Tensor) -> int:
    return max(LEAST, 1 << (x.shape[-1] - 1).bit_length())


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(g_ptr, values_ptr, z_ptr, b, SIZE: tl.constexpr, ROUNDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Turn g by rounds of rotations, SIZE / 2 at once; seats beyond b are zero and never turn."""
    half: tl.constexpr = SIZE // 2
    at = tl.program_id(0).to(tl.int64) * b * b
    row, col = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (row < b) & (col < b)
    g = tl.load(g_ptr + at + row * b + col, mask=inside, other=0.0)
    eye = tl.where(row == col, 1.0, 0.0)
    z = eye
    # The index that takes seat `col` next: the first stays, the others move on, as in `jacobi`.
    onward = tl.where(col < half, col - 1, col + 1)
    source = tl.where(col == 0, 0, tl.where(col == 1, half, onward))
    source = tl.where(col == SIZE - 1, half - 1, source)
    for _ in range(ROUNDS):
        across = tl.sum(tl.where(row == col, g, 0.0), axis=0)[None, :]
        own = tl.sum(tl.where(row == col, g, 0.0), axis=1)
        others = tl.sum(tl.where(col == (row ^ half), across, 0.0), axis=1)
        twice = 2 * tl.sum(tl.where(col == (row ^ half), g, 0.0), axis=1)
        gap = others - own
        large = tl.maximum(tl.abs(gap), tl.abs(twice))
        small = tl.minimum(tl.abs(gap), tl.abs(twice))
        ratio = small / tl.where(large > 0, large, 1.0)
        size = tl.abs(gap) + large * tl.sqrt(1 + ratio * ratio)
        t = tl.where(size > 0, twice / tl.where(size > 0, size, 1.0), 0.0)
        # Both of a pair take the same angle, with opposite signs; gap = 0 is the first one's plus.
        seat = tl.arange(0, SIZE)
        t = tl.where(tl.where(seat < half, gap < 0, gap <= 0), -t, t)
        c = 1 / tl.sqrt(1 + t * t)
        s = t * c
        c_next = tl.sum(tl.where(row == source, c[:, None], 0.0), axis=0)[None, :]
        s_next = tl.sum(tl.where(row == source, s[:, None], 0.0), axis=0)[None, :]
        turn = tl.where(row == source, c_next, 0.0)
        turn = tl.where(row == (source ^ half), -s_next, turn)
        g = tl.dot(g, turn, input_precision="ieee")
        g = tl.dot(tl.trans(turn), g, input_precision="ieee")
        z = tl.dot(z, turn, input_precision="ieee")
    tl.store(z_ptr + at + row * b + col, z, mask=inside)
    i = tl.arange(0, SIZE)
    values = tl.sum(tl.where(row == col, g, 0.0), axis=1)
    tl.store(values_ptr + tl.program_id(0).to(tl.int64) * b + i, values, mask=i < b)


@triton.jit  # type: ignore[untyped-decorator]
def _eliminate(c_ptr, inverse_ptr, b, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Factorise column by column and apply each step to the identity beside it."""
    at = tl.program_id(0).to(tl.int64) * b * b
    row, col = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (row < b) & (col < b)
    eye = tl.where(row == col, 1.0, 0.0)
    a = tl.load(c_ptr + at + row * b + col, mask=inside, other=0.0)
    a = tl.where(inside, a, eye)
    inverse = eye
    lowest = 1.0
    for j in range(SIZE):
        pivot = tl.sum(tl.sum(tl.where((row == j) & (col == j), a, 0.0), axis=1), axis=0)
        lowest = tl.where(pivot > 0, lowest, 0.0)  # NaN is not positive either
        scale = 1 / tl.sqrt(tl.where(pivot > 0, pivot, 1.0))
        down = tl.sum(tl.where(col == j, a, 0.0), axis=1)[:, None] * scale
        right = tl.sum(tl.where(row == j, a, 0.0), axis=0)[None, :] * scale
        done = tl.sum(tl.where(row == j, inverse, 0.0), axis=0)[None, :] * scale
        a = tl.where((row > j) & (col > j), a - down * right, a)
        inverse = tl.where(row > j, inverse - down * done, inverse)
        inverse = tl.where(row == j, done, inverse)
    spoiled = tl.sum(tl.sum(inverse * 0.0, axis=1), axis=0)  # NaN if any entry is not finite
    sound = (lowest > 0) & (spoiled == 0.0)
    inverse = tl.where(sound, inverse, eye)
    tl.store(inverse_ptr + at + row * b + col, inverse, mask=inside)
