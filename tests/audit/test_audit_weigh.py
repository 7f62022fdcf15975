"""One cold measurement of one matrix, against a float64 SVD of the numbers it holds."""

import math

import pytest
import torch
from spectra import SPECTRA, gaussian, norm, planted, singular_values

from snc_client.audit.weigh import ROUNDING, weigh

# Singular values that close together are not told apart in 256 iterations: the result says so.
UNSETTLED = {"one above a plateau", "sixty within two percent"}


@pytest.mark.parametrize("name", SPECTRA)
def test_sigma_and_sigma_upper_enclose_the_spectral_norm_closely(name: str) -> None:
    w = planted(SPECTRA[name], 200).float()
    found, true = weigh(w), norm(w)
    assert true * (1 - 1e-3) <= found.sigma <= true * (1 + ROUNDING)
    assert true <= found.sigma_upper <= true * 1.0011
    assert found.settled == (name not in UNSETTLED)
    if found.settled:
        assert found.sigma >= true * (1 - 1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 5), (70, 300), (5_000, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_shape_and_dtype_is_measured_as_stored(shape: tuple[int, int], dtype) -> None:
    w = gaussian(*shape).to(dtype)
    found, s = weigh(w), singular_values(w)
    true, frobenius = float(s[0]), float(s.square().sum().sqrt())
    assert found.sigma == pytest.approx(true, rel=1e-5)
    assert true * (1 - 1e-15) <= found.sigma_upper <= true * 1.0011
    assert found.frobenius == pytest.approx(frobenius, rel=1e-12)
    assert found.stable_rank == pytest.approx((frobenius / true) ** 2, rel=1e-4)
    assert found.residual <= 1e-4 * true
    assert found.not_finite == 0


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (1e-40, torch.float32),
        (1e36, torch.float32),
        (1e-38, torch.bfloat16),
        (1e-5, torch.float16),
        (1e-300, torch.float64),
        (1e300, torch.float64),
        (3e-320, torch.float64),
    ],
)
def test_a_scale_whose_squares_fit_nowhere_changes_nothing(scale: float, dtype) -> None:
    w = (gaussian(30, 20).double() * scale).to(dtype)
    found = weigh(w)
    # The oracle's own squares do not fit either: an exact power of two brings them near one.
    unit = 2.0 ** max(-1000, math.frexp(scale)[1])
    s = singular_values(w.double() / unit) * unit
    assert found.sigma == pytest.approx(float(s[0]), rel=1e-5)
    assert float(s[0]) <= found.sigma_upper <= float(s[0]) * 1.0011
    assert found.stable_rank == pytest.approx(
        float((s / s[0]).square().sum()), rel=1e-4 if scale > 3e-320 else 1e-2
    )


def test_a_bound_is_rounded_up_where_float64_itself_has_one_digit() -> None:
    least = 5e-324
    found = weigh(torch.full((2, 1), least, dtype=torch.float64))
    assert found.sigma_upper >= 2 * least  # the norm is 1.41 of them


def test_a_bound_that_shows_sigma_to_be_low_is_followed_by_a_second_search() -> None:
    w = planted(torch.cat([torch.tensor([1.003]), torch.ones(799)])).float()
    found, true = weigh(w), norm(w)
    # The first search ends 1.8e-3 low.
    assert true * (1 - 1e-3) <= found.sigma <= true
    assert true <= found.sigma_upper <= true * 1.0011
    assert not found.settled


@pytest.mark.parametrize("away", [1e-7, 1e-4, 9e-4])
def test_a_threshold_between_sigma_and_sigma_upper_is_decided(away: float) -> None:
    w = planted(SPECTRA["power law"], 150)
    true = norm(w)
    above, below = true * (1 + away), true * (1 - away)
    held, broken = weigh(w, threshold=above), weigh(w, threshold=below)
    assert held.sigma <= held.sigma_upper == above
    assert broken.sigma_upper > below
    assert weigh(w, threshold=above, proof=False).sigma <= true * (1 + ROUNDING)


def test_a_weight_scaled_onto_its_threshold_is_proven_to_be_there() -> None:
    # What enforcement leaves: float32 rounding may lift sigma over it, the proof is exact.
    for seed in range(20):
        w = gaussian(40, 30, seed=seed).double()
        w /= norm(w) * (1 + 1e-9)
        found = weigh(w, threshold=1.0)
        assert found.sigma <= found.sigma_upper == 1.0


def test_no_proof_leaves_the_bound_open() -> None:
    w = gaussian(30, 40)
    found = weigh(w, proof=False)
    assert math.isnan(found.sigma_upper)
    assert found.sigma == pytest.approx(norm(w), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_entries_that_are_not_finite_are_counted_and_nothing_is_claimed(bad: float, dtype) -> None:
    w = gaussian(20, 30).to(dtype)
    w[3, 4] = w[7, 1] = bad
    found = weigh(w, threshold=1e30)
    assert found.not_finite == 2
    assert found.sigma_upper == math.inf
    assert all(map(math.isnan, (found.sigma, found.frobenius, found.stable_rank, found.residual)))


def test_a_zero_matrix_has_zeros_everywhere() -> None:
    found = weigh(torch.zeros(4, 7), threshold=1.0)
    assert (found.sigma, found.sigma_upper, found.frobenius, found.stable_rank) == (0, 0, 0, 0)
    assert found.settled


def test_measuring_changes_neither_the_weight_nor_the_global_generator() -> None:
    w = gaussian(30, 20)
    before, state = w.clone(), torch.get_rng_state()
    weigh(w, threshold=3.0)
    assert torch.equal(w, before)
    assert torch.equal(torch.get_rng_state(), state)
