from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from no_host_sync import NoHostSync
from spectra import SPECTRA, gaussian, norm, planted, singular_values
from torch import Tensor

from snc_client.certificate import (
    RUNGS,
    Certificate,
    _first_passing,
    _Gram,
    _gram,
    _lowest_passing,
    _passes,
    arithmetic_of,
    carry,
    certify,
    sigma_upper,
)
from snc_client.gram import gram_bound

SHAPES = [(1, 1), (1, 30), (30, 1), (3, 5), (96, 96), (250, 96), (40, 200)]


def matrices() -> list[Tensor]:
    crowded = [planted(s, m).float() for s in SPECTRA.values() for m in (96, 150)]
    return crowded + [gaussian(*shape, seed=i) for i, shape in enumerate(SHAPES)]


def test_a_bound_just_above_the_spectral_norm_is_proven_and_just_below_it_is_not() -> None:
    for w in matrices():
        true = norm(w)
        above, below = certify(w, true * (1 + 1e-6)), certify(w, true * (1 - 1e-6))
        assert above
        assert above.label == "proven"
        assert not below
        assert below.label == "not proven"


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-10, 1e10, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    w = gaussian(50, 40) * scale
    true = norm(w)
    assert certify(w, true * (1 + 1e-6))
    assert not certify(w, true * (1 - 1e-6))
    for sigma in (true, 0.9 * true):
        assert float(sigma_upper(w, torch.tensor(sigma))) >= true


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 1e300])
def test_float64_weights_whose_squares_do_not_fit_are_certified_too(scale: float) -> None:
    w = gaussian(20, 15).double() * scale
    true = float(torch.linalg.svdvals(w / w.abs().amax())[0] * w.abs().amax())
    assert certify(w, true * (1 + 1e-2 if scale < 1e-300 else 1 + 1e-12))
    assert not certify(w, true * (1 - 1e-2))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_weight_without_a_positive_entry_is_certified_at_any_scale(scale: float) -> None:
    w = -gaussian(20, 15).double().abs() * scale
    true = float(torch.linalg.svdvals(w / scale)[0]) * scale
    assert certify(w, true * (1 + 1e-12))
    assert not certify(w, true * (1 - 1e-12))


def test_no_rounding_makes_a_bound_below_the_exact_norm_pass() -> None:
    # The norm of a vector is known exactly: its square is a sum of squares of binary fractions.
    fooled = 0
    for seed in range(100):
        w = gaussian(1_000, 1, seed=seed)
        exact = sum(Fraction(x) ** 2 for x in w.flatten().tolist())
        bound = math.sqrt(exact)
        while Fraction(bound) ** 2 >= exact:
            bound = math.nextafter(bound, 0.0)
        assert not certify(w, bound)
        assert certify(w, bound * (1 + 1e-12))
        fooled += float((w.double().mT @ w.double())[0, 0]) < bound**2
    assert fooled > 0, "without a shift, the rounded square would be below that of the bound"


def test_float32_arithmetic_gives_up_a_norm_within_a_millionth_of_the_bound() -> None:
    w = torch.eye(3)
    assert not certify(w, 1 + 0.8e-6, arithmetic="float32")
    assert certify(w, 1 + 1.5e-6, arithmetic="float32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_low_precision_is_certified_as_stored(dtype: torch.dtype) -> None:
    w = (gaussian(60, 40) / 4).to(dtype)
    true = norm(w)
    assert certify(w, true * (1 + 1e-6))
    assert not certify(w, true * (1 - 1e-6))


def test_the_certificate_says_what_was_tried() -> None:
    w = gaussian(60, 40)
    passed = certify(w, torch.tensor(100.0))
    assert (passed.bound, passed.arithmetic) == (100.0, "float64")
    assert 0 < passed.shift < 1e-10
    assert "Cholesky did not complete" in certify(w, 1.0).reason


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_never_certified(bad: float) -> None:
    w = gaussian(20, 30)
    w[3, 4] = bad
    for bound in (1.0, 1e30, math.inf):
        certificate = certify(w, bound)
        assert not certificate
        assert "not finite" in certificate.reason
    assert float(sigma_upper(w, torch.tensor(1.0))) == math.inf


def test_zero_and_empty_weights_have_norm_zero() -> None:
    for w in (torch.zeros(4, 7), torch.zeros(0, 7), torch.zeros(7, 0)):
        assert certify(w, 0.0)
        assert certify(w, 1.0)
        for sigma in (0.0, 1.0, math.nan):
            assert float(sigma_upper(w, torch.tensor(sigma))) == 0.0
    assert not certify(torch.full((1, 1), 1e-45), 0.0)
    assert certify(torch.ones(1, 1), math.inf)


@pytest.mark.parametrize("bound", [-1.0, math.nan, -math.inf])
def test_a_bound_that_is_no_bound_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="bound must be a number >= 0"):
        certify(torch.ones(2, 2), bound)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), "weight must be a matrix"),
        (torch.ones(2, 3, 4), "weight must be a matrix"),
        (torch.ones(2, 3, dtype=torch.int64), "weight must hold real numbers, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), "weight must hold real numbers"),
        (torch.ones(2, 3, device="meta"), "weight must hold real numbers"),
    ],
)
def test_what_is_no_real_matrix_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(weight, 1.0)
    with pytest.raises(ValueError, match=message):
        sigma_upper(weight, torch.tensor(1.0))


def test_a_factor_with_nan_and_info_zero_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    # What CUDA answers for a NaN matrix (pytorch#64818); a CPU never does, hence the stand-in.
    def as_on_cuda(a: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return torch.full_like(a, math.nan), torch.zeros((), dtype=torch.int32)

    one = torch.ones((), dtype=torch.float64)
    gram = _Gram(torch.eye(3, dtype=torch.float64), one, 3 * one, 3, "float64")
    assert bool(_passes(gram, 2 * one))
    assert not bool(_passes(gram, math.nan * one))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", as_on_cuda)
    assert not bool(_passes(gram, 2 * one))


def test_the_bound_stays_above_with_any_sigma_and_is_tight_with_a_good_one() -> None:
    for w in matrices():
        true = norm(w)
        for error, tightness in ((0.0, 1e-3), (5e-4, 1e-3), (5e-3, 1e-2)):
            upper = float(sigma_upper(w, torch.tensor(true * (1 - error))))
            assert true <= upper <= true * (1 + tightness + 1e-6)
        for sigma in (0.9 * true, 0.1 * true, 0.0, math.nan, -1.0, math.inf):
            upper = float(sigma_upper(w, torch.tensor(sigma)))
            assert true <= upper <= true * 1.02


def test_a_bound_far_above_sigma_says_that_the_block_is_lost() -> None:
    w = planted(torch.linspace(1, 0, 60)).float()
    assert float(sigma_upper(w, torch.tensor(0.9))) > 1.011 * 0.9
    assert float(sigma_upper(w, torch.tensor(0.995))) <= 1.011 * 0.995


def test_the_bound_is_rounded_up_to_float32() -> None:
    # 64 ones and sigma one unit below: sigma * 1.001 in float64 falls between float32 numbers.
    for k in range(200):
        sigma = torch.tensor(1.0 + k * 1e-4)
        upper = sigma_upper(torch.eye(2) * sigma, sigma)
        exact = float(sigma) * (1 + 1e-3)
        assert upper.dtype == torch.float32
        assert exact <= float(upper) <= exact * (1 + 1.2e-7)


def test_the_last_resort_is_exact_for_rank_one_and_equal_singular_values() -> None:
    for name, digits in (("rank one", 2e-6), ("all equal", 1e-4), ("rank three", 1e-2)):
        w = planted(SPECTRA[name], 120)
        true = norm(w)
        assert true <= float(gram_bound(w.mT @ w)) <= true * (1 + digits)
        # Two squarings, as on a GPU: looser, and still a bound.
        assert true <= float(gram_bound(w.mT @ w, squarings=2)) <= true * 1.4


def test_no_unsound_certificate_among_random_matrices() -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(400):
        m, n = torch.randint(1, 24, (2,), generator=generator).tolist()
        w = torch.randn(m, n, generator=generator) * 10 ** (
            4 * torch.randn((), generator=generator)
        )
        true = float(singular_values(w)[0])
        assert not certify(w, true * (1 - 1e-9))
        assert certify(w, true * (1 + 1e-9))
        assert not certify(w, true * (1 - 1e-6), arithmetic="float32")
        assert certify(w, true * (1 + 1e-5), arithmetic="float32")


def test_selecting_on_the_device_finds_what_stopping_early_finds() -> None:
    for w in matrices():
        gram = _gram(w, "float64")
        true = norm(w) * gram.factor
        rungs = [true * 0.995 * (1 + eta) for eta in RUNGS]  # the first fails, the second passes
        assert torch.equal(_lowest_passing(gram, rungs), _first_passing(gram, rungs))
        both = [true * (1 + eta) for eta in RUNGS]
        assert torch.equal(_lowest_passing(gram, both), both[0])
        low = [0.9 * rung for rung in rungs]
        assert float(true) <= float(_lowest_passing(gram, low)) <= float(true) * 2


def test_float32_arithmetic_is_evidence_and_says_so() -> None:
    w = gaussian(80, 60)
    assert certify(w, 2 * norm(w), arithmetic="float32").label == "numerical"
    upper = float(sigma_upper(w, torch.tensor(norm(w)), arithmetic="float32"))
    assert norm(w) <= upper <= norm(w) * (1 + 1.1e-3)


def test_a_cpu_proves() -> None:
    assert arithmetic_of(torch.device("cpu")) == "float64"
    assert arithmetic_of(torch.device("mps")) == "float32"


def test_products_in_low_precision_do_not_reach_the_certificate() -> None:
    w = gaussian(128, 128)
    true = norm(w)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert certify(w, true * (1 + 1e-6))
            assert certify(w, true * (1 + 1e-5), arithmetic="float32")
            assert not certify(w, true * (1 - 1e-6), arithmetic="float32")
    finally:
        torch.set_float32_matmul_precision(before)


def test_sigma_upper_leaves_weight_gradient_and_host_alone() -> None:
    w = torch.nn.Parameter(gaussian(40, 30))
    before = w.detach().clone()
    true = torch.tensor(norm(before))
    with NoHostSync():
        upper = sigma_upper(w, true)
        sigma_upper(w, torch.tensor(1.0))
    assert not upper.requires_grad
    assert torch.equal(w, before)


def test_a_certificate_is_true_where_it_passed() -> None:
    assert bool(Certificate(True, 1.0, 0.0, "float64", ""))
    assert not bool(Certificate(False, 1.0, 0.0, "float64", ""))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_carried_bound_holds_after_drift_scaling_and_rounding(dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps / 2
    for seed in range(40):
        w = planted(SPECTRA["all equal"] if seed % 2 else SPECTRA["spike"], seed=seed).float()
        upper = torch.tensor(norm(w) * (1 + 1e-6))
        change = 0.1 * gaussian(*w.shape, seed=seed + 1) / w.shape[0] ** 0.5
        moved = w + change
        factor = torch.tensor(0.3 + 0.017 * seed)
        stored = (moved * factor).to(dtype)
        carried = carry(
            upper,
            scale=factor,
            drift=torch.linalg.matrix_norm(moved - w, 2) * (1 + 1e-6),
            frobenius=moved.norm(),
            rounding=rounding,
        )
        assert norm(stored) <= float(carried) <= norm(stored) * 1.4 + 12 * rounding


def test_a_carried_bound_is_never_below_its_formula_in_exact_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    upper, drift, scale, frobenius = (
        x + 0.01 for x in torch.rand(4, 2_000, generator=generator).unbind()
    )
    found = carry(upper, drift=drift, scale=scale, frobenius=frobenius, rounding=2.0**-8)
    columns = (x.tolist() for x in (upper, drift, scale, frobenius, found))
    for u, d, s, f, bound in zip(*columns, strict=True):
        exact = (Fraction(u) + Fraction(d)) * Fraction(s) + Fraction(s) * Fraction(f) / 256
        assert exact <= Fraction(bound) <= exact * (1 + Fraction(1, 10**6))


def test_carrying_over_nothing_costs_next_to_nothing() -> None:
    upper = torch.tensor([1.0, 3.0, math.inf])
    carried = carry(upper, scale=torch.ones(3), frobenius=torch.full((3,), 20.0))
    assert torch.all(carried >= upper)
    assert torch.all(carried[:2] <= upper[:2] * (1 + 1e-6))


@pytest.mark.parametrize("n", [2, 7, 64, 300])
def test_the_last_resort_pays_for_its_own_rounding_where_all_eigenvalues_are_equal(n: int) -> None:
    """There the spread is a difference of equal sums: rounding alone decides what is left of it."""
    for scale in (1.0, 1 / 3, 0.7, 1e-9):
        g = scale * torch.eye(n, dtype=torch.float64)
        bound = float(gram_bound(g)) / scale**0.5
        assert 1 + 1e-6 - 1e-12 <= bound <= 1 + 5e-6
