"""The b x b algebra of one iteration, batched over the layers that share b.

Shapes: K layers, B vectors per block, N their length. Blocks are kept as rows (K, B, N).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snc_client.estimator.solvers import Eigh, solvers
from snc_client.precision import finite

SHIFT = 1e-5  # of unit rows: bounds the condition number that Cholesky sees; rows only get shorter
DEAD = 1e-12  # squared norm relative to the largest row: below it a row is rounding noise


class Ritz(NamedTuple):
    """The directions of a block, from its two Gram matrices, best one first."""

    z_KBB: Tensor  # rows: combinations of the block's vectors, by descending growth
    growth: Tensor  # [K] z'Gz of the first row
    reach: Tensor  # [K] z'Rz of the first row
    energy: Tensor  # [K] trace of R without the last vector, the one that explores
    finite: Tensor  # [K] bool; where False the other fields are meaningless, but finite

    def split(self, sizes: Sequence[int]) -> list[Ritz]:
        """Cut the K layers into pieces of the given sizes."""
        pieces = zip(*(torch.split(field, list(sizes)) for field in self), strict=True)
        return [Ritz(*piece) for piece in pieces]


def ritz(r_KBB: Tensor, g_KBB: Tensor, *, eigh: Eigh | None = None, look: bool = False) -> Ritz:
    """Rotate to the eigenvectors of G = XX', X = UW; R = UU' is the Gram matrix of U.

    Ranked by G and not by R: half a step of power further, so a new direction comes up earlier.
    ``eigh`` is the device's own if None (`solvers`): on the CPU LAPACK's in float64, which costs
    nothing at this size. ``look``: where the host reads freely, it spares what only zeros and
    numbers that are not finite need.
    """
    sound = finite((r_KBB + g_KBB).sum((1, 2)))  # entries of such Grams are far from overflow
    r, g = r_KBB, g_KBB
    if not (look and all(sound.tolist())):
        r, g = (torch.where(sound[:, None, None], gram, 0.0) for gram in (r, g))
    if g.device.type == "cpu":
        r, g = r.double(), g.double()
    values, vectors = (eigh or solvers(g.device).eigh)(g)
    z = vectors.mT.flip(-2)
    first = z[:, :1]
    reach = torch.bmm(torch.bmm(first, r), first.mT).view(-1)
    energy = r.diagonal(dim1=-2, dim2=-1)[:, :-1].sum(-1)
    return Ritz(z.float(), values[:, -1].clamp(min=0), reach.clamp(min=0), energy, sound)


def revive(y_KBN: Tensor, noise: Callable[[], Tensor], *, look: bool = False) -> Tensor:
    """Return y with rows of length one; dead and not finite rows are taken from ``noise``.

    Equal lengths keep the condition number of the block near one, for any spectrum. y may be
    written. ``look``: where the host reads freely, it spares the noise where no row needs it.
    """
    length = torch.linalg.vector_norm(y_KBN, dim=-1, keepdim=True)
    alive = length.square() > DEAD * length.amax(-2, keepdim=True).square()  # False for NaN too
    if look and alive.all().tolist():
        return y_KBN.div_(length)
    return torch.where(alive, y_KBN, noise()).div_(torch.where(alive, length, 1.0))


def orthonormalizer(c_KBB: Tensor) -> Tensor:
    """Return T with (T Y)(T Y)' <= I up to rounding, for the Gram matrix C = YY' of unit rows.

    Shifted CholeskyQR (arXiv 1809.11085). Where the factor fails or is not finite, T is the
    identity and Y stays as it is.
    """
    shifted = c_KBB.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(SHIFT)
    return solvers(c_KBB.device).inverse_factor(shifted)
