"""Clip: singular values of a matrix that lies in pieces are cut as those of the whole one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snc_client.callback.monitor.sharded.clip import clip_
from snc_client.callback.monitor.sharded.layer_sums import LayerSums
from snc_client.operators.sharded import Rectangle, ShardedMatrix


def capped(whole: Tensor, limit: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(whole.double(), full_matrices=False)
    return u * s.clamp(max=float(limit)) @ vh


def pieces_of(whole: Tensor, places: list[tuple[slice, slice]]) -> tuple[Rectangle, ...]:
    return tuple(Rectangle(whole[r, c].clone(), r.start, c.start) for r, c in places)


def assembled(whole: Tensor, processes: list[ShardedMatrix]) -> Tensor:
    found = torch.full(whole.shape, torch.nan, dtype=torch.float64)
    for matrix in processes:
        for piece in matrix.pieces:
            rows, columns = piece.local.shape
            found[piece.row : piece.row + rows, piece.column : piece.column + columns] = piece.local
    return found


# Rows of two processes, with one row that both have a part of.
TORN = [[(slice(0, 3), slice(0, 5)), (slice(3, 4), slice(0, 2))],
        [(slice(3, 4), slice(2, 5)), (slice(4, 7), slice(0, 5))], []]  # fmt: skip
BOTH = [[(slice(0, 2), slice(0, 5))], [(slice(0, 2), slice(5, 9))],
        [(slice(2, 4), slice(0, 5))], [(slice(2, 4), slice(5, 9))]]  # fmt: skip


@pytest.mark.parametrize("share", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("way", ["torn rows", "columns", "gathered", "gathered and tall"])
def test_pieces_are_those_of_the_capped_matrix(way: str, share: float) -> None:
    torch.manual_seed(0)
    whole = torch.randn(7, 5) if way in ("torn rows", "columns") else torch.randn(4, 9)
    places, torn, axis = (TORN, (3,), 0) if whole.shape == (7, 5) else (BOTH, (), 0)
    if way in ("columns", "gathered and tall"):
        whole, axis = whole.mT.contiguous(), 1
        places = [[(c, r) for r, c in each] for each in places]
    gathered = way.startswith("gathered")
    processes = [
        ShardedMatrix(tuple(whole.shape), pieces_of(whole, each), (0, 1), axis=axis, torn=torn)
        for each in places
    ]
    upright = (whole.mT if axis else whole).double()
    rows = [i for i in range(len(upright)) if i not in torn]
    proof = upright if gathered else upright[rows].mT @ upright[rows]
    sums = LayerSums({"proof": proof, "torn": upright[list(torn)].float()})
    limit = (torch.linalg.matrix_norm(whole, 2) * share).float()
    factors = {
        float(clip_(matrix, sums, limit, torch.float32, gathered=gathered)) for matrix in processes
    }
    found = assembled(whole, processes)
    assert (found - capped(whole, limit)).abs().max() <= 2.0**-22
    assert torch.linalg.matrix_norm(found, 2) <= limit * (1 + 2.0**-24 * 5**0.5)
    (factor,) = factors
    assert factor == pytest.approx(min(1.0, share), rel=1e-6)
    if share > 1:
        assert torch.equal(found, whole.double())


def test_low_precision_aims_below_the_threshold_by_its_rounding() -> None:
    torch.manual_seed(0)
    whole = torch.randn(7, 5).to(torch.bfloat16)
    matrix = ShardedMatrix((7, 5), (Rectangle(whole.clone(), 0, 0),), (0,))
    sums = LayerSums({"proof": whole.double().mT @ whole.double(), "torn": torch.zeros(0, 5)})
    clip_(matrix, sums, torch.tensor(2.0), torch.bfloat16, gathered=False)
    found = torch.linalg.matrix_norm(matrix.pieces[0].local.double(), 2)
    assert 2.0 * (1 - 2.0**-7) <= found <= 2.0 * (1 + 2.0**-9)
