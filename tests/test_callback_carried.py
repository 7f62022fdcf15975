"""Bounds carried from an earlier certificate: never below the spectral norm, by float64 SVD."""

from __future__ import annotations

import math

import pytest
import torch
from small_loops import spectral_norm
from torch import Tensor

from snc_client.callback.carried import CarriedBounds
from snc_client.certificate import sigma_upper
from snc_client.operators import BlockDiagonal, LowRank, Matrix

CPU = torch.device("cpu")


def certified(weight: Tensor) -> tuple[CarriedBounds, float]:
    bounds = CarriedBounds(1, CPU)
    upper = sigma_upper(weight, torch.tensor(spectral_norm(weight)))
    bounds.certified(0, Matrix(weight), upper)
    return bounds, float(upper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 3.0])
def test_a_carried_bound_is_above_the_spectral_norm_by_what_the_weight_moved(dtype, scale):
    torch.manual_seed(0)
    weight = torch.randn(20, 30).to(dtype)
    before = weight.double().clone()
    bounds, upper = certified(weight)
    for _ in range(20):
        # Along the top direction: the drift is what the norm grows by, so nothing is left over.
        u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        weight.add_((scale * torch.outer(u[:, 0], vh[0])).to(dtype))
        carried = float(bounds.bounds({0: Matrix(weight)})[0])
        moved = float(torch.linalg.matrix_norm(weight.double() - before))
        assert spectral_norm(weight) <= carried <= (upper + moved) * (1 + 1e-5)


def test_blocks_are_carried_together():
    torch.manual_seed(0)
    weight = torch.randn(3, 5, 4)
    bounds = CarriedBounds(1, CPU)
    largest = torch.linalg.matrix_norm(weight, 2).amax() * (1 + 1e-6)
    bounds.certified(0, BlockDiagonal(weight), largest)
    weight[1] *= 4
    exact = float(torch.linalg.matrix_norm(weight.double(), 2).amax())
    assert float(bounds.bounds({0: BlockDiagonal(weight)})[0]) >= exact


def test_a_newer_certificate_takes_the_place_of_the_older_also_in_another_dtype():
    weight = torch.eye(4)
    bounds, _ = certified(weight)
    weight = (5 * weight).bfloat16()
    assert float(bounds.bounds({0: Matrix(weight)})[0]) == pytest.approx(1 + 8, rel=2e-3)
    bounds.certified(0, Matrix(weight), torch.tensor(5.0))
    assert float(bounds.bounds({0: Matrix(weight)})[0]) == pytest.approx(5, rel=1e-5)


def test_without_a_certificate_there_is_no_bound():
    bounds = CarriedBounds(3, CPU)
    low_rank = LowRank(torch.ones(4, 1), torch.ones(1, 4))
    bounds.certified(1, low_rank, torch.tensor(4.0))
    never, impossible, other = bounds.bounds({0: Matrix(torch.eye(2)), 1: low_rank}).tolist()
    assert math.isinf(never)
    assert math.isinf(impossible)
    assert math.isnan(other)


def test_what_was_or_is_not_finite_proves_nothing():
    weight = torch.eye(4)
    bounds, _ = certified(weight)
    weight[0, 0] = math.nan
    assert not float(bounds.bounds({0: Matrix(weight)})[0]) <= 1e30
    bounds.certified(0, Matrix(weight), torch.tensor(math.inf))
    weight[0, 0] = 1.0
    assert not float(bounds.bounds({0: Matrix(weight)})[0]) <= 1e30
