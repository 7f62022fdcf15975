"""ShardedPower: one iteration for matrices of which no process holds all pieces.

The vectors lie along the side that is whole, on every process alike. A process multiplies them with
its pieces, the products are summed over all processes, and what follows is computed by each from
the sums alone: so all of them find the same numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snc_client.devices import reading_is_free
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
    largest: Tensor  # 0-d, the largest absolute entry of U; see `bands`
    torn_TN: Tensor  # entries of torn rows, zero where they lie elsewhere


@dataclass(frozen=True)
class Sums:
    """The sums of all processes' `Summand`, and of the `bands` of their largest entries."""

    x_BN: Tensor
    r_BB: Tensor
    bands: Tensor  # [BANDS]
    torn_TN: Tensor


class ShardedPower(BlockPower):
    """`BlockPower` of matrices that are `ShardedMatrix`; every call makes one iteration.

    ``sides``: (distributed, whole) of each matrix. All processes of a layer make the same calls in
    the same order: what is drawn at random depends on their number alone.
    """

    def __init__(
        self, sides: Sequence[tuple[int, int]], *, device: torch.device, block: int, seed: int = 0
    ) -> None:
        self._exponents = torch.zeros(len(sides), device=device)
        self._shrink = list(torch.ones(len(sides), device=device).unbind())  # 2^-exponent, 0-d each
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
        runs, shrink = row_runs(matrix), self._shrink[layer]
        with full_precision(self._device):
            if len(runs) == len(matrix.rows) == 1 and runs[0][1]:
                return times(matrix.rows[0], v_BN) * shrink
            found = {run: torch.zeros(len(v_BN), run[1], device=v_BN.device) for run in runs}
            for piece in matrix.rows:
                if piece.row not in matrix.torn and piece.local.numel():
                    found[piece.row, piece.local.shape[0]] += times(piece, v_BN)
        together = [found[run] for run in runs] or [v_BN.new_zeros(len(v_BN), 0)]
        return torch.cat(together, 1) * shrink

    @torch.no_grad()
    def share(self, matrix: ShardedMatrix, v_BN: Tensor, u_BM: Tensor, *, first: bool) -> Summand:
        """Return what this process adds to the sums; ``first``: that it is the one to add U'U.

        ``u_BM`` is what `ahead` returned, after the sum where there is one.
        """
        runs = row_runs(matrix)
        r_BB, largest = v_BN.new_zeros(len(v_BN), len(v_BN)), v_BN.new_zeros(())
        if not matrix.counts:
            return Summand(torch.zeros_like(v_BN), r_BB, largest, _torn(matrix, v_BN))
        with full_precision(self._device):
            if first and u_BM.numel():
                r_BB = gram(u_BM)
                largest = torch.linalg.vector_norm(u_BM, math.inf)
            (*others, only) = matrix.rows or (None,)
            if only and not others and only.local.shape == (u_BM.shape[1], v_BN.shape[1]):
                return Summand(back(only, u_BM), r_BB, largest, _torn(matrix, v_BN))
            x_BN, torn_TN = torch.zeros_like(v_BN), _torn(matrix, v_BN)
            parts = dict(zip(runs, torch.split(u_BM, [size for _, size in runs], 1), strict=True))
            for piece in matrix.rows:
                span = slice(piece.column, piece.column + piece.local.shape[1])
                if piece.row in matrix.torn:
                    torn_TN[matrix.torn.index(piece.row), span] = piece.local[0].float()
                elif piece.local.numel():
                    x_BN[:, span] += back(piece, parts[piece.row, piece.local.shape[0]])
        return Summand(x_BN, r_BB, largest, torn_TN)

    @torch.no_grad()
    def finish(
        self, vectors: Sequence[Tensor], sums: Sequence[Sums], sound: Tensor, alike: Tensor
    ) -> Estimates:
        """Return sigma and residual of all layers from the sums, and keep the next vectors.

        Where a sum is not ``sound`` (bool [L]) sigma is NaN; then the vectors stay, or are drawn
        anew if those of the processes were not ``alike`` (bool [L]).
        """
        every = range(len(vectors))
        with full_precision(self._device):
            before = list(self._blocks)
            scale = torch.ldexp(torch.ones_like(self._exponents), self._exponents)
            whole = [_with_torn_rows(*each) for each in zip(vectors, sums, scale, strict=True)]
            fits = self._rescaled(torch.stack([x.bands for x in whole]), sound)
            self._ready = [
                (v, x.x_BN, x.r_BB, *each)
                for v, x, *each in zip(vectors, whole, fits, scale, strict=True)
            ]
            found = self._iterate([_Item(i, _Sides(self._shapes[i])) for i in every])
            if not (reading_is_free(self._device) and bool(sound.all())):
                self._undo(before, sound, alike)
        self._ready = []
        return found

    def counts(self) -> list[int]:
        """Return how many iterations each layer has made."""
        return list(self._steps)

    @torch.no_grad()
    def lost(self, counts: Sequence[int]) -> Estimates:
        """Go on as the processes that got no number from this one: with the same vectors.

        ``counts`` are those from before the iteration, whose `finish` was not called.
        """
        self._steps = [count + 1 for count in counts]
        nothing = torch.full_like(self._exponents, math.nan)
        return Estimates(nothing, nothing, nothing)

    def blocks(self) -> list[Tensor]:
        """Return the vectors of all layers, for `restore`."""
        return list(self._blocks)

    @torch.no_grad()
    def restore(self, vectors: Sequence[Tensor], where: Tensor) -> None:
        """Go on with these if ``where`` (0-d bool) is True: the weights are as they were then."""
        for layer, before in enumerate(vectors):
            self._store(layer, torch.where(where, before, self._blocks[layer]))

    def agreed(self) -> Tensor:
        """Return whole numbers below 61 that tell the vectors of processes apart, int64 [L, 2].

        Different vectors give the same ones by chance, once in 3,721 cases.
        """
        found: dict[int, Tensor] = {}
        for same in self._alike_in_shape():
            blocks = torch.stack([self._blocks[i] for i in same])
            bits = blocks.view(torch.int32).flatten(1).to(torch.int64)
            places = torch.arange(bits.shape[1], device=bits.device) % 60 + 1
            both = torch.stack([bits.sum(1), (bits * places).sum(1)], 1).remainder(61)
            found.update(zip(same, both.unbind(), strict=True))
        return torch.stack([found[i] for i in range(len(found))])

    def _alike_in_shape(self) -> list[list[int]]:
        """Return the layers, those of one shape of block together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i in range(len(self._blocks)):
            groups.setdefault(self._block_shape(i), []).append(i)
        return list(groups.values())

    def _rescaled(self, bands_LK: Tensor, sound: Tensor) -> Sequence[Tensor]:
        """Choose the exponents of the next iteration; return where the present ones fit, L x 0-d.

        Elsewhere the squares have left float32: the next iteration uses the right exponent.
        """
        some = (bands_LK > 0).any(1)
        at = torch.arange(BANDS, device=self._device) + LOWEST_BAND
        highest = torch.where(bands_LK > 0, at, LOWEST_BAND).amax(1)
        fits = (highest.abs() <= 1) | ~some
        step = torch.where(some, highest * BAND, 0).float()
        moved = (self._exponents + step).clamp(-128, 128)
        self._exponents = torch.where(sound & ~(fits & (highest == 0)), moved, self._exponents)
        shrink = torch.ldexp(torch.ones_like(self._exponents), -self._exponents)
        self._shrink = list(shrink.unbind())
        return (sound & fits).unbind()

    def _undo(self, before: Sequence[Tensor], sound: Tensor, alike: Tensor) -> None:
        """Put back the vectors of layers that are not ``sound``, drawn anew if not ``alike``."""
        keep, same = sound[:, None, None].unbind(), alike[:, None, None].unbind()
        for layers in self._alike_in_shape():
            new, old, fresh = (
                torch.stack(each)
                for each in (
                    [self._blocks[i] for i in layers],
                    [before[i] for i in layers],
                    [self._random_rows(i) for i in layers],
                )
            )
            ok, equal = (torch.stack([x[i] for i in layers]) for x in (keep, same))
            blocks = torch.where(ok, new, torch.where(equal, old, fresh))
            for i, block in zip(layers, blocks.unbind(), strict=True):
                self._store(i, block)

    def _multiply(self, group: Sequence[_Item], free: bool) -> _Products:
        v, x, r, fits, scale = (
            torch.stack(parts)
            for parts in zip(*(self._ready[item.layer] for item in group), strict=True)
        )
        return scaled(v, x, torch.where(fits[:, None, None], r, math.nan), scale)

    _ready: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    """V, W'U, U'U, whether these fit into float32, and the scale of U, of each layer."""


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


def bands(largest: Tensor) -> Tensor:
    """Return one in the band of each of these numbers, float32 [..., BANDS]; none for 0 and NaN."""
    mantissa, exponent = torch.frexp(largest)
    band = torch.div(exponent + BAND // 2, BAND, rounding_mode="floor")
    band = band.clamp(LOWEST_BAND, -LOWEST_BAND)
    at = torch.arange(BANDS, device=largest.device) + LOWEST_BAND
    some = (mantissa > 0) & mantissa.isfinite()
    return ((at == band[..., None]) & some[..., None]).float()


def _torn(matrix: ShardedMatrix, v_BN: Tensor) -> Tensor:
    """Return zeros, one row for each torn row."""
    return v_BN.new_zeros(len(matrix.torn), v_BN.shape[1])


def _with_torn_rows(v_BN: Tensor, sums: Sums, scale: Tensor) -> Sums:
    """Add what torn rows contribute: each process has all of their entries now."""
    if not len(sums.torn_TN):
        return sums
    u_BT = (v_BN @ sums.torn_TN.mT) / scale
    return replace(
        sums,
        x_BN=sums.x_BN + u_BT @ sums.torn_TN,
        r_BB=sums.r_BB + gram(u_BT),
        bands=sums.bands + bands(torch.linalg.vector_norm(u_BT, math.inf)),
    )
