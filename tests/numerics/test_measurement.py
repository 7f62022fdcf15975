"""measure(): numbers of weights at once, against float64 SVD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from snc_client import measure


def spectrum(name: str, n: int) -> Tensor:
    return {
        "gaussian": torch.linalg.svdvals(torch.randn(n, n, dtype=torch.float64)),
        "all equal": torch.ones(n, dtype=torch.float64),
        "power law": 1 / torch.arange(1, n + 1, dtype=torch.float64),
        "rank one": torch.eye(n, dtype=torch.float64)[0],
        "flat": torch.linspace(0.7, 1.2, n, dtype=torch.float64),
        "tiny": torch.linspace(1e-31, 1e-30, n, dtype=torch.float64),
        "huge": torch.linspace(1e29, 1e30, n, dtype=torch.float64),
    }[name]


def matrix(values: Tensor, rows: int, columns: int) -> Tensor:
    """Return a float32 matrix whose singular values are ``values``, up to rounding."""
    k = len(values)
    u = torch.linalg.qr(torch.randn(rows, k, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, k, dtype=torch.float64))[0]
    return ((u * values) @ v.T).float()


@pytest.mark.parametrize(
    "name", ["gaussian", "all equal", "power law", "rank one", "flat", "tiny", "huge"]
)
@pytest.mark.parametrize("shape", [(96, 96), (200, 96), (96, 200)])
def test_sigma_and_its_bound_enclose_the_spectral_norm(name, shape):
    torch.manual_seed(0)
    weight = matrix(spectrum(name, 96), *shape)
    exact = float(torch.linalg.matrix_norm(weight.double(), 2))
    found = measure(weight)["0"]
    assert found.sigma == pytest.approx(exact, rel=1e-4)
    assert exact * (1 - 1e-6) <= found.sigma <= exact * (1 + 1e-12)
    assert exact <= found.sigma_upper <= exact * (1 + 3e-6)
    assert found.frobenius == pytest.approx(float(weight.double().norm()), rel=1e-6)
    assert found.stable_rank == pytest.approx((found.frobenius / exact) ** 2, rel=1e-3)


def test_a_model_gives_the_layers_that_the_callback_watches():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, 3),
            "grouped": nn.Conv2d(8, 8, 3, groups=4),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    found = measure(model)
    assert list(found) == [
        "conv.weight",
        "grouped.weight",
        *(f"attention.in_proj_weight[{part}]" for part in "qkv"),
        "attention.out_proj.weight",
    ]
    groups = model["grouped"].weight.detach().double().flatten(1).unflatten(0, (4, 2))
    exact = max(float(torch.linalg.matrix_norm(group, 2)) for group in groups)
    assert found["grouped.weight"].sigma == pytest.approx(exact, rel=1e-5)
    assert exact <= found["grouped.weight"].sigma_upper <= exact * (1 + 2e-3)


def test_names_of_a_state_dict_are_kept_and_vectors_are_left_out():
    state = {**nn.Linear(3, 5).state_dict(), "ids": torch.ones(2, 2, dtype=torch.int64)}
    assert list(measure(state)) == ["weight"]
    assert list(measure([torch.eye(2), torch.eye(3)])) == ["0", "1"]


def test_a_diagonal_has_the_numbers_one_can_read_off():
    found = measure(torch.diag(torch.tensor([3.0, 2.0, 0.5])))["0"]
    assert found.sigma == pytest.approx(3.0, rel=1e-6)
    assert found.frobenius == pytest.approx(math.sqrt(13.25), rel=1e-6)
    assert found.stable_rank == pytest.approx(13.25 / 9, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_measured_as_they_are_stored(dtype):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = float(torch.linalg.matrix_norm(weight.double(), 2))
    found = measure(weight)["0"]
    assert found.sigma == pytest.approx(exact, rel=1e-5)
    assert found.sigma_upper >= exact


@pytest.mark.parametrize(
    "weight",
    [torch.diag(torch.tensor([3e-100, 4e-100], dtype=torch.float64)), 3e38 * torch.ones(50, 50)],
    ids=["tiny", "huge"],
)
def test_norms_beyond_the_range_of_float32_are_norms(weight):
    found = measure(weight)["0"]
    exact = weight.double()
    assert found.frobenius == pytest.approx(float(exact.norm()), rel=1e-12)
    assert found.sigma == pytest.approx(float(torch.linalg.matrix_norm(exact, 2)), rel=1e-6)
    assert found.stable_rank == pytest.approx((found.frobenius / found.sigma) ** 2, rel=1e-9)


def test_zero_and_weights_that_are_not_finite_have_numbers_too():
    zero = measure(torch.zeros(4, 3))["0"]
    assert (zero.sigma, zero.sigma_upper, zero.stable_rank) == (0, 0, 0)
    for bad in (math.nan, math.inf):
        found = measure(torch.tensor([[1.0, bad], [0.0, 1.0]]))["0"]
        assert math.isnan(found.sigma)
        assert math.isnan(found.stable_rank)
        assert found.sigma_upper == math.inf


@pytest.mark.parametrize("nothing", [[], {"bias": torch.ones(3)}, torch.ones(3)])
def test_without_a_matrix_there_is_nothing_to_measure(nothing):
    with pytest.raises(ValueError, match="2 or more dimensions"):
        measure(nothing)


def test_the_weights_and_the_global_random_numbers_stay_as_they_are():
    model = nn.Linear(6, 6)
    before, state = model.weight.clone(), torch.get_rng_state()
    measure(model)
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
