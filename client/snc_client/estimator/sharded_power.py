"""ShardedPower: one iteration for matrices of which no process holds all pieces.

The vectors lie along the side that is whole, on every process alike. A process multiplies them with
its pieces, the products are summed over all processes, and what follows is computed by each from
the sums alone: so all of them find the same numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.estimator.block_power import (
    BlockPower,
    Estimates,
    _Item,
    _Products,
    scaled,
)
from snc_client.estimator.products import gram
from snc_client.operators.sharded.matrix import ShardedMatrix, back, times
from snc_client.precision import full_precision

# A sum over processes is made in float32, of squares too. They fit where numbers are multiplied by
# 2^-exponent first; all processes must use the same one, so it has few values. Each process says in
# which band its own numbers lie; the sum says which band is the highest.
BAND = 32  # binary digits
BANDS = 9  # -144 to 144
LOWEST_BAND = -(BANDS // 2)


@dataclass(frozen=True)
class Summand:
    """What one process adds to the sums of a layer."""

    x_BN: Tensor  # of W'U, without torn rows
    r_BB: Tensor  # of U'U, without torn rows
    bands: Tensor  # [BANDS] one where the largest entry of U lies
    torn_TN: Tensor  # entries of torn rows, zero where they lie elsewhere


class ShardedPower(BlockPower):
    """`BlockPower` of matrices that are `ShardedMatrix`; every call makes one iteration.

    ``sides``: (distributed, whole) of each matrix. All processes of a layer make the same calls in
    the same order: what is drawn at random depends on their number alone.
    """

    def __init__(
        self, sides: Sequence[tuple[int, int]], *, device: torch.device, block: int, seed: int = 0
    ) -> None:
        self._exponents = torch.zeros(len(sides), device=device)
        super().__init__(sides, device=device, block=block, seed=seed)

    def _block_shape(self, layer: int) -> tuple[int, int]:
        # As many as fit, however few rows there are: one of them explores.
        length = self._shapes[layer][1]
        return min(self._block, length), length

    def block_shape(self, layer: int) -> tuple[int, int]:
        """Return number and length of a layer's vectors."""
        return self._block_shape(layer)

    @torch.no_grad()
    def load_block(self, layer: int, block_BN: Tensor | None) -> None:
        """Continue with the best of these vectors, if they have the right length."""
        ours = self._blocks[layer]
        if block_BN is not None and block_BN.ndim == 2 and block_BN.shape[1] == ours.shape[1]:
            theirs = block_BN.detach().to(ours)[: len(ours)]
            self._store(layer, torch.cat([theirs, ours[len(theirs) :]]))

    @torch.no_grad()
    def explored(self, layer: int) -> Tensor:
        """Count an iteration of a layer and return the vectors to multiply, (b, n)."""
        return self._explored(layer)

    @torch.no_grad()
    def ahead(self, layer: int, matrix: ShardedMatrix, v_BN: Tensor) -> Tensor:
        """Return W V of the rows that lie here, scaled, (b, rows of all runs); see `back`.

        Where columns are cut too, this is a share of a sum over ``matrix.across``.
        """
        runs = row_runs(matrix)
        scale = torch.ldexp(torch.ones_like(self._exponents[layer]), -self._exponents[layer])
        found = {run: torch.zeros(len(v_BN), run[1], device=v_BN.device) for run in runs}
        with full_precision(self._device):
            for piece in matrix.rows:
                if piece.row not in matrix.torn and piece.local.numel():
                    found[piece.row, piece.local.shape[0]] += times(piece, v_BN)
        joined = (
            torch.cat([found[run] for run in runs], 1) if runs else v_BN.new_zeros(len(v_BN), 0)
        )
        return joined * scale

    @torch.no_grad()
    def share(self, matrix: ShardedMatrix, v_BN: Tensor, u_BM: Tensor, *, first: bool) -> Summand:
        """Return what this process adds to the sums; ``first``: that it is the one to add U'U.

        ``u_BM`` is what `ahead` returned, after the sum where there is one.
        """
        runs = row_runs(matrix)
        parts = dict(zip(runs, torch.split(u_BM, [size for _, size in runs], 1), strict=True))
        x_BN, r_BB = torch.zeros_like(v_BN), v_BN.new_zeros(len(v_BN), len(v_BN))
        torn_TN = v_BN.new_zeros(len(matrix.torn), v_BN.shape[1])
        bands = v_BN.new_zeros(BANDS)
        if not matrix.counts:
            return Summand(x_BN, r_BB, bands, torn_TN)
        with full_precision(self._device):
            for piece in matrix.rows:
                span = slice(piece.column, piece.column + piece.local.shape[1])
                if piece.row in matrix.torn:
                    torn_TN[matrix.torn.index(piece.row), span] = piece.local[0].float()
                elif piece.local.numel():
                    x_BN[:, span] += back(piece, parts[piece.row, piece.local.shape[0]])
            if first and u_BM.numel():
                r_BB = gram(u_BM)
                bands = _band(u_BM)
        return Summand(x_BN, r_BB, bands, torn_TN)

    @torch.no_grad()
    def finish(
        self,
        which: Sequence[int],
        vectors: Sequence[Tensor],
        sums: Sequence[Summand],
        sound: Sequence[Tensor],
        alike: Sequence[Tensor],
    ) -> Estimates:
        """Return sigma and residual of the layers from the sums, and keep the next vectors.

        Where a sum is not ``sound`` (0-d bool) sigma is NaN; then the vectors stay, or are drawn
        anew if those of the processes were not ``alike``.
        """
        with full_precision(self._device):
            self._sums = {
                i: self._whole(i, v, sum_, ok)
                for i, v, sum_, ok in zip(which, vectors, sums, sound, strict=True)
            }
            before = {i: self._blocks[i] for i in which}
            items = [_Item(i, _Sides(self._shapes[i])) for i in which]
            found = self._iterate(items)
            for i, ok, same in zip(which, sound, alike, strict=True):
                kept = torch.where(same, before[i], self._random_rows(i))
                self._store(i, torch.where(ok, self._blocks[i], kept))
        self._sums = {}
        return found

    def agreed(self, layer: int) -> Tensor:
        """Return two whole numbers below 61, int64 [2], that tell the vectors of processes apart.

        Different vectors give the same ones by chance, once in 3,721 cases.
        """
        bits = self._blocks[layer].contiguous().view(torch.int32).flatten().to(torch.int64)
        places = torch.arange(len(bits), device=bits.device) % 60 + 1
        total, weighted = bits.sum(), (bits * places).sum()
        return torch.stack([total, weighted]).remainder(61)

    def _whole(
        self, layer: int, v_BN: Tensor, sums: Summand, sound: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return V, X, R and the scale of U, torn rows included; NaN where not ``sound``."""
        exponent = self._exponents[layer]
        scale = torch.ldexp(torch.ones_like(exponent), exponent)
        x_BN, r_BB = sums.x_BN, sums.r_BB
        bands = sums.bands
        if len(sums.torn_TN):
            u_BT = (v_BN @ sums.torn_TN.mT) / scale
            x_BN, r_BB = x_BN + u_BT @ sums.torn_TN, r_BB + gram(u_BT)
            bands = bands + _band(u_BT)
        at = torch.arange(BANDS, device=bands.device) + LOWEST_BAND
        highest = torch.where(bands > 0, at, LOWEST_BAND).amax()
        # Squares would leave float32: the next iteration uses the right exponent.
        fits = (highest.abs() <= 1) | (bands.sum() == 0)
        step = torch.where(bands.sum() > 0, highest * BAND, 0).float()
        finite = r_BB.isfinite().all()
        moved = (exponent + torch.where(finite | (bands.sum() > 0), step, 0.0)).clamp(-128, 128)
        self._exponents[layer] = torch.where(sound & ~(fits & (highest == 0)), moved, exponent)
        r_BB = torch.where(sound & fits, r_BB, math.nan)
        return v_BN, x_BN, r_BB, scale

    def _multiply(self, group: Sequence[_Item], free: bool) -> _Products:
        v, x, r, scale = (
            torch.stack(parts)
            for parts in zip(*(self._sums[item.layer] for item in group), strict=True)
        )
        return scaled(v, x, r, scale)

    _sums: Mapping[int, tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class _Sides:
    """The shape of an operator that has been multiplied already."""

    shape: tuple[int, int]

    def matmul(self, v_NB: Tensor) -> Tensor:
        raise NotImplementedError("its products are sums over processes")

    rmatmul = matmul


def row_runs(matrix: ShardedMatrix) -> list[tuple[int, int]]:
    """Return (first row, number) of the rows of pieces, torn ones left out, in order."""
    return sorted({(p.row, p.local.shape[0]) for p in matrix.rows if p.row not in matrix.torn})


def _band(u_BM: Tensor) -> Tensor:
    """Return one in the band of the largest entry, float32 [BANDS]; none for zeros and NaN."""
    low, high = torch.aminmax(u_BM)
    largest = torch.maximum(high, -low)
    mantissa, exponent = torch.frexp(largest)
    band = torch.div(exponent + BAND // 2, BAND, rounding_mode="floor")
    band = band.clamp(LOWEST_BAND, -LOWEST_BAND)
    at = torch.arange(BANDS, device=u_BM.device) + LOWEST_BAND
    return ((at == band) & (mantissa > 0) & mantissa.isfinite()).float()
