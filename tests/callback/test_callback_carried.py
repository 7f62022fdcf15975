"""Bounds carried from an earlier certificate: never below the spectral norm, by float64 SVD."""

from __future__ import annotations

import math

import pytest
import torch
from small_loops import spectral_norm
from torch import Tensor

from snc_client.callback.monitor.carried_bounds import CarriedBounds, SteppedBounds, frobenius_upper
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


def test_a_newer_certificate_starts_from_the_weight_as_it_is_then():
    weight = torch.eye(4)
    bounds, _ = certified(weight)
    weight *= 5
    bounds.certified(0, Matrix(weight), torch.tensor(5.0))
    assert float(bounds.bounds({0: Matrix(weight)})[0]) == pytest.approx(5, rel=1e-5)


def test_a_copy_has_the_precision_of_the_weight_that_was_certified():
    # bfloat16 has 1 and 1 + 1/128 only: a copy of 1 + 3/512 in it would already be at 1 + 4/512.
    bounds, _ = certified(torch.ones(1, 1).bfloat16())
    start, end = torch.full((1, 1), 1 + 3 / 512), torch.full((1, 1), 1 + 4 / 512)
    bounds.certified(0, Matrix(start), start[0, 0])
    assert float(bounds.bounds({0: Matrix(end)})[0]) >= float(end)


def regular_hadamard(k: int) -> Tensor:
    """Return H, n x n of +-1 for n = 4^k, with HH' = n I and every row sum sqrt n."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    h = torch.ones(1, 1)
    for _ in range(k):
        h = torch.kron(h, four)
    return h


def test_a_carried_bound_covers_a_step_whose_roundings_all_point_the_same_way():
    # The vector of ones is a top direction of H. A step of 0.51 units in the last place moves every
    # entry by a whole one, so the norm grows by twice the step's; it is 48 + 1024 * 2^-23 exactly.
    h, unit = regular_hadamard(5), 2.0**-23
    bounds = SteppedBounds([(1024, 1024)], CPU)
    bounds.acted(torch.tensor([48.0]), torch.ones(1))
    step = torch.full((1024, 1024), 0.51 * unit)
    assert torch.equal(1.5 * h + step, 1.5 * h + unit)
    norm = torch.linalg.vector_norm(step.double()).float()
    upper = bounds.filled(torch.full((1,), math.nan), torch.zeros(1), {0: norm})
    assert 48 + 1024 * unit <= float(upper.double()) <= 48 * (1 + 1e-4)


def test_without_a_certificate_there_is_no_bound():
    bounds = CarriedBounds(3, CPU)
    low_rank = LowRank(torch.ones(4, 1), torch.ones(1, 4))
    bounds.certified(1, low_rank, torch.tensor(4.0))
    never, impossible, other = bounds.bounds({0: Matrix(torch.eye(2)), 1: low_rank}).tolist()
    assert math.isinf(never)
    assert math.isinf(impossible)
    assert math.isnan(other)


def test_what_is_not_finite_proves_nothing_and_leaves_the_frobenius_norm_once_it_has_healed():
    weight = torch.eye(4)
    bounds, _ = certified(weight)
    weight[0, 0] = math.nan
    assert not float(bounds.bounds({0: Matrix(weight)})[0]) <= 1e30
    bounds.certified(0, Matrix(weight), torch.tensor(math.inf))
    assert not float(bounds.bounds({0: Matrix(weight)})[0]) <= 1e30
    weight[0, 0] = 1.0
    assert 2.0 <= float(bounds.bounds({0: Matrix(weight)})[0]) <= 2.0 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 7), "normal"), ((3000, 64), "equal"), ((64, 3000), "normal"), ((40, 9, 3, 3), "equal")],
)
def test_a_frobenius_norm_is_never_below_the_exact_one_and_close(shape, kind, scale):
    torch.manual_seed(0)
    x = scale * (torch.randn(shape) if kind == "normal" else torch.full(shape, 0.1))
    exact = float(torch.linalg.vector_norm(x.double()))
    found = float(frobenius_upper(x).double())
    assert found >= exact
    if scale >= 1e-15:
        assert found <= exact * (1 + 1e-3) + 1e-15


def test_a_float64_norm_is_not_narrowed_on_the_way():
    x = torch.full((10, 10), 1e-50, dtype=torch.float64)
    assert float(frobenius_upper(x)) >= 1e-49


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_and_scalings_that_add_up_are_covered_with_all_their_roundings(dtype):
    """Each step goes straight up, so that nothing but the rounding margin is left over."""
    torch.manual_seed(0)
    weight = torch.randn(24, 16).to(dtype)
    bounds = SteppedBounds([(24, 16)], CPU)
    upper = sigma_upper(weight, torch.tensor(spectral_norm(weight))).reshape(1)
    one, nan = torch.ones(1), torch.full((1,), math.nan)
    bounds.acted(upper, one)
    for k in range(60):
        u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        step = (1e-3 * torch.outer(u[:, 0], vh[0])).to(dtype)
        weight.add_(step)
        norm = torch.linalg.vector_norm(step).float()
        upper = bounds.filled(nan, torch.zeros(1), {0: norm})
        assert spectral_norm(weight) <= float(upper)
        scale = one if k % 3 else torch.tensor([0.99])
        weight.mul_(scale)
        bounds.acted(upper, scale)
        assert spectral_norm(weight) <= float(bounds.filled(nan, torch.zeros(1), {0: 0 * norm}))
    assert float(upper) <= spectral_norm(weight) * 1.05


def test_what_is_measured_now_is_not_replaced_and_what_is_contradicted_is_dropped():
    bounds = SteppedBounds([(4, 4)] * 4, CPU)
    bounds.acted(torch.full((4,), 2.0), torch.ones(4))
    upper = torch.tensor([1.5, math.nan, math.nan, math.nan])
    sigma = torch.tensor([1.0, 1.0, 2.2, math.nan])
    drift = {i: torch.tensor(0.1) for i in range(4)}
    found = bounds.filled(upper, sigma, drift).tolist()
    assert found[0] == 1.5
    assert 2.1 <= found[1] <= 2.101
    assert math.isnan(found[2]), "sigma is from below: a bound under it is wrong"
    assert math.isnan(found[3])


def test_a_layer_whose_step_is_unknown_has_no_bound_from_then_on():
    bounds, nan, one = SteppedBounds([(4, 4)], CPU), torch.full((1,), math.nan), torch.ones(1)
    bounds.acted(2 * one, one)
    unknown = bounds.filled(nan, one, {})
    bounds.acted(unknown, one)
    assert unknown.isnan()
    assert bounds.filled(nan, one, {0: torch.tensor(0.0)}).isnan()


def test_a_capped_layer_starts_again_and_one_that_needed_no_cap_goes_on():
    nan, one = torch.full((1,), math.nan), torch.ones(1)
    for scale, known in ((0.9 * one, False), (one, True)):
        bounds = SteppedBounds([(4, 4)], CPU)
        bounds.acted(2 * one, scale, void=[0])
        found = bounds.filled(nan, one, {0: torch.tensor(0.0)})
        assert bool(found.isfinite()) is known
