"""A convolution on a torus: small matrices, one per frequency, whose norms bound the real map.

With zeros for padding, a convolution on inputs of size H is a part of the one on a torus that is
large enough for nothing to wrap around; with circular padding it is one. There Fourier's basis
splits it into a matrix (out, in) per frequency (Sedghi, Gupta and Long, arXiv 1805.10408); a stride
of s couples s frequencies. A smaller torus would be no bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snc_client.operators import Convolution, Geometry
from snc_client.precision import in_float64

# Multiply-adds for the certificate of one convolution: about a second on one core.
MOST_WORK = 2e10


class Torus(NamedTuple):
    """||convolution|| <= ``times`` * (largest norm among ``matrices`` + ``error``)."""

    matrices: Tensor
    """Real, float64 [K, 2m, 2n]: a + ib as ((a, -b), (b, a)), which has the same norm."""
    times: float
    error: Tensor
    """0-d: a bound of the rounding error in the norm of a matrix."""


def on_torus(convolution: Convolution) -> Torus | None:
    """Return the matrices whose norms bound ``convolution``; None where that is too much work.

    Exact for circular padding whose outputs cover the torus evenly. With zeros 1 to 4 % loose for
    3x3 at 12 x 12, up to 23 % for 7x7, and less on larger inputs. Reflected or replicated
    padding is bounded as the valid convolution of the padded input times the norm of the padding,
    1.4 or more per dimension.
    """
    geometry = convolution.geometry
    kernel, shift = in_float64(convolution.tensors[0].detach())
    axes = [_axis(geometry, i, k) for i, k in enumerate(kernel.shape[2:])]
    sizes, strides = [size for size, _, _ in axes], [stride for _, stride, _ in axes]
    m, n = kernel.shape[0] // geometry.groups, kernel.shape[1] * math.prod(strides)
    count = geometry.groups * math.prod(sizes) / math.prod(strides) / 2
    if count * 8 * m * n * min(m, n) > MOST_WORK:
        return None
    a, b = (
        _folded((kernel.flatten(2) @ p).reshape(geometry.groups, m, -1, *sizes), strides)
        for p in _phases(sizes, kernel.shape[2:], geometry.dilation, kernel)
    )
    matrices = torch.cat([torch.cat([a, -b], 2), torch.cat([b, a], 2)], 1)
    taps = math.prod(kernel.shape[2:])
    error = 4 * (taps + 16) * 2.0**-53 * math.sqrt(taps) * torch.linalg.vector_norm(kernel)
    times = math.prod(times for _, _, times in axes)
    return Torus(matrices, times * 2.0**-shift, error)


def padding_norm(convolution: Convolution) -> float:
    """Return a bound of the norm of the padding, and of reading it once for each output."""
    kernel = convolution.tensors[0].shape[2:]
    return math.prod(_axis(convolution.geometry, i, k)[2] for i, k in enumerate(kernel))


def _axis(geometry: Geometry, i: int, k: int) -> tuple[int, int, float]:
    """Return one dimension's size of the torus, its stride there, and the norm of its padding."""
    height, stride, mode = geometry.grid[i], geometry.stride[i], geometry.mode
    before, after = geometry.pads[i]
    room = height + before + after - geometry.dilation[i] * (k - 1) - 1
    outputs = min(room // stride + 1, geometry.limit[i] if geometry.limit else room + 1)
    span = (outputs - 1) * stride + 1
    if mode == "circular":
        if height % stride:
            return height, 1, math.sqrt(-(-span // height))  # outputs that repeat
        return height, stride, math.sqrt(-(-outputs * stride // height))
    if mode == "zeros":
        return _multiple(max(height + max(before, after), span), stride), stride, 1.0
    padded = _multiple(height + before + after, stride)
    return padded, stride, math.sqrt(max(_readings(height, before, after, mode).values()))


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def _readings(height: int, before: int, after: int, mode: str) -> Counter[int]:
    """Count how often each input is read into the padded one: the squared norm of the padding."""
    places = range(-before, height + after)
    if mode == "replicate":
        return Counter(min(max(at, 0), height - 1) for at in places)
    last = height - 1
    return Counter(last - abs(last - abs(at)) for at in places)  # reflected at both ends


def _phases(
    sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of each tap's angle at each frequency, float64 [taps, frequencies]."""
    dimensions = len(sizes)
    turns = like.new_zeros([1] * 2 * dimensions)
    for i, (size, k, d) in enumerate(zip(sizes, kernel, dilation, strict=True)):
        taps = d * torch.arange(k, device=like.device).unsqueeze(1)
        steps = taps * torch.arange(size, device=like.device) % size  # reduced before it is rounded
        shape = [1] * 2 * dimensions
        shape[i], shape[dimensions + i] = k, size
        turns = turns + (steps.double() / size).reshape(shape)
    angles = 2 * math.pi * turns.reshape(math.prod(kernel), math.prod(sizes))
    return torch.cos(angles), torch.sin(angles)


def _folded(part: Tensor, strides: Sequence[int]) -> Tensor:
    """Put the frequencies that a stride couples side by side: [g, m, n, *N] -> [K, m, n * s].

    The kernel is real: of two opposite frequencies, which have the same norm, one is enough.
    """
    dimensions = len(strides)
    for i, s in enumerate(strides):
        axis = 3 + 2 * i
        part = torch.unflatten(
            part, axis, (s, -1)
        )  # frequency = alias * N / s + the one that is left
    left = [4 + 2 * i for i in range(dimensions)]
    aliases = [3 + 2 * i for i in range(dimensions)]
    part = part.permute(0, *left, 1, 2, *aliases)
    part = part[:, : part.shape[1] // 2 + 1]
    part = part.flatten(dimensions + 2).flatten(0, dimensions)
    return part / math.sqrt(math.prod(strides))
