from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from no_host_sync import NoHostSync
from spectra import SPECTRA, gaussian, norm, planted, singular_values
from torch import Tensor

from snc_client.certificate import sigma_upper
from snc_client.constraint import (
    cap_,
    clip_entries_,
    clip_rows_,
    clip_seen_,
    matrix_sign,
    normalize_,
    rescale_,
    seen,
)
from snc_client.estimator import BlockPower
from snc_client.operators import Matrix

LOW = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *LOW]


def one(value: float) -> Tensor:
    return torch.tensor([value])


def bits(w: Tensor) -> Tensor:
    return w.clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[w.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rescaled_weight_lands_at_its_threshold(dtype: torch.dtype) -> None:
    for w64 in (planted(s, m) for s in SPECTRA.values() for m in (96, 140)):
        w = (w64 * 1.7).to(dtype)
        scale = rescale_([w], one(norm(w)), one(1.0))
        assert 1 - 3e-7 <= norm(w) <= 1 + 6e-8
        assert scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision_lands_at_or_under_the_threshold_after_rounding(dtype: torch.dtype) -> None:
    for w64 in (planted(s, m) for s in SPECTRA.values() for m in (96, 140)):
        for factor in (1.0001, 1.003, 1.37, 3.0):
            w = (w64 * factor / norm(w64)).to(dtype)
            true = norm(w)
            threshold = true / factor
            rescale_([w], one(true), one(threshold))
            assert threshold * (1 - 1e-2) <= norm(w) <= threshold


@pytest.mark.parametrize("dtype", LOW)
def test_a_factor_near_one_is_not_lost_in_rounding(dtype: torch.dtype) -> None:
    # 50 x (W * .999) leave a bfloat16 weight where it is; 50 x rescale_ reach the threshold.
    w = planted(SPECTRA["spike"]).to(dtype)
    start = norm(w)
    for _ in range(50):
        rescale_([w], one(norm(w)), one(0.951 * start))
    assert norm(w) <= 0.951 * start


@pytest.mark.parametrize("dtype", LOW)
def test_a_rescaled_master_lands_within_one_rounding_of_its_copy(dtype: torch.dtype) -> None:
    # The way to hold a mixed-precision weight: measure the copy, scale the master, cast again.
    unit = torch.finfo(dtype).eps / 2
    for w64 in (planted(s, m) for s in SPECTRA.values() for m in (96, 140)):
        master = (1.4 * w64).float()
        rescale_([master], one(norm(master.to(dtype))), one(1.0))
        assert 1 - unit <= norm(master.to(dtype)) <= 1 + unit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("upper", "threshold"),
    [
        (0.5, 1.0),
        (1.0, 1.0),
        (0.0, 1.0),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (2.0, math.inf),
        (2.0, math.nan),
        (math.inf, math.inf),
    ],
)
def test_every_bit_stays_where_nothing_is_to_be_done(
    dtype: torch.dtype, upper: float, threshold: float
) -> None:
    w = gaussian(20, 30).to(dtype)
    w[0, :4] = torch.tensor([0.0, -0.0, math.inf, math.nan]).to(dtype)
    w[1, 0] = torch.finfo(dtype).smallest_normal / 2
    before = bits(w)
    scales = [rescale_([w], one(upper), one(threshold))]
    scales.append(cap_(w, torch.tensor(upper), torch.tensor(threshold)).reshape(1))
    assert torch.equal(bits(w), before)
    assert scales == [torch.ones(1), torch.ones(1)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_finite_is_left_alone(dtype: torch.dtype) -> None:
    # Its sigma is NaN and its bound +inf, or NaN if there is none.
    w = gaussian(20, 30).to(dtype)
    w[3, 4] = math.nan
    before = bits(w)
    for upper in (math.nan, float(sigma_upper(w, torch.tensor(2.0)))):
        rescale_([w], one(upper), one(0.1))
        cap_(w, torch.tensor(upper), torch.tensor(0.1))
    cap_(w, torch.tensor(5.0), torch.tensor(0.1))  # even with a wrong bound
    assert torch.equal(bits(w), before)


def test_layers_are_scaled_each_by_its_own_in_place_and_views_too() -> None:
    fused = gaussian(60, 20)
    query, key, value = fused.split(20)
    half = gaussian(8, 8).bfloat16()
    before = [x.clone() for x in (query, key, value, half)]
    uppers = torch.tensor([norm(x) for x in before])
    thresholds = uppers * torch.tensor([0.5, 2.0, 0.25, 0.5])
    version = fused._version
    scale = rescale_([query, key, value, half], uppers, thresholds)
    torch.testing.assert_close(
        scale, torch.tensor([0.5, 1.0, 0.25, 0.5 * (1 - 2**-8)]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(fused[:20], before[0] * 0.5)
    assert torch.equal(fused[20:40], before[1])
    torch.testing.assert_close(fused[40:], before[2] * 0.25)
    assert fused._version > version


def test_stacks_kernels_and_parameters_are_scaled_as_a_whole() -> None:
    kernel = torch.nn.Parameter(torch.ones(3, 2, 5, 5))
    rescale_([kernel], one(2.0), one(1.0))
    torch.testing.assert_close(kernel.detach(), torch.full((3, 2, 5, 5), 0.5))
    assert kernel.requires_grad
    assert kernel.grad_fn is None


def test_extreme_scales_do_not_overflow_on_the_way() -> None:
    for scale in (1e-30, 1e30):
        w = gaussian(20, 20) * scale
        rescale_([w], one(norm(w)), one(norm(w) / 3))
        capped = gaussian(20, 20) * scale
        true = norm(capped)
        cap_(capped, torch.tensor(true), torch.tensor(true / 3))
        assert norm(capped) == pytest.approx(true / 3, rel=1e-5)


@pytest.mark.parametrize("name", [*SPECTRA])
@pytest.mark.parametrize("shape", ["tall", "square", "wide"])
def test_cap_clips_what_is_above_and_nothing_else(name: str, shape: str) -> None:
    w = planted(SPECTRA[name] * 1.6, 150 if shape == "tall" else 96)
    w = (w.mT if shape == "wide" else w).float().contiguous()
    c = 1.0
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    expected = (u * s.clamp(max=c)) @ vh
    scale = cap_(w, torch.tensor(norm(w)), torch.tensor(c))
    assert c * (1 - 5e-6) <= norm(w) <= c
    assert float(scale) == pytest.approx(c / float(s[0]), rel=1e-5)
    assert float((singular_values(w) - s.clamp(max=c)).abs().max()) <= 5e-6
    assert float((w - expected).abs().max()) <= 5e-6


@pytest.mark.parametrize("top", [1.02, 1.5, 4.0, 40.0])
def test_cap_holds_for_clusters_and_large_values_and_is_idempotent(top: float) -> None:
    cluster = torch.cat([torch.linspace(top, top * 0.98, 60), torch.linspace(0.9, 0.0, 36)])
    w = planted(cluster, 110).float()
    cap_(w, torch.tensor(norm(w)), torch.tensor(1.0))
    assert 1 - 4e-6 - 8e-7 * top <= norm(w) <= 1
    # Told that the bound is above the threshold although it is not, it finds nothing to clip.
    again = w.clone()
    cap_(again, torch.tensor(1.001), torch.tensor(1.0))
    assert float((again - w).abs().max()) <= 4e-6
    assert norm(again) <= 1


@pytest.mark.parametrize("dtype", LOW)
def test_a_capped_low_precision_weight_is_under_the_threshold_after_rounding(
    dtype: torch.dtype,
) -> None:
    for w64 in (planted(s, m) for s in SPECTRA.values() for m in (96, 140)):
        w = (1.6 * w64).to(dtype)
        cap_(w, torch.tensor(norm(w)), torch.tensor(1.0))
        assert 1 - 1e-2 <= norm(w) <= 1


def test_cap_in_float64_is_exact_to_its_margin() -> None:
    w = planted(torch.linspace(3, 0, 40), 50)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    margin = 1 - 2.0**-19
    cap_(w, torch.tensor(3.0), torch.tensor(1.0))
    torch.testing.assert_close(w, (u * s.clamp(max=margin)) @ vh, rtol=0, atol=1e-8)


def test_the_matrix_sign_of_zero_is_zero_and_keeps_zero_directions() -> None:
    assert torch.equal(matrix_sign(torch.zeros(5, 3)), torch.zeros(5, 3))
    sign = matrix_sign(planted([2.0, 1e-3, 0.0], 6))
    expected = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    # Of zero the rounding of 1e-16 is left, and lifted 2e11 times.
    torch.testing.assert_close(singular_values(sign), expected, rtol=0, atol=1e-4)


def test_neither_waits_for_the_host_nor_heeds_low_precision_products() -> None:
    weights = [gaussian(40, 40, seed=1), gaussian(30, 40, seed=2).bfloat16()]
    uppers = torch.tensor([norm(w) for w in weights])
    w = gaussian(128, 128)
    true = torch.tensor(norm(w))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with NoHostSync(), torch.autocast("cpu", dtype=torch.bfloat16):
            rescale_(weights, uppers, uppers / 2)
            cap_(w, true, true / 2)
    finally:
        torch.set_float32_matmul_precision(before)
    assert norm(weights[0]) == pytest.approx(float(uppers[0]) / 2, rel=1e-6)
    assert norm(w) == pytest.approx(float(true) / 2, rel=5e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_a_growing_weight_is_held_at_its_threshold_at_every_step(strict: bool) -> None:
    # Each step pushes the whole top of the spectrum up by 1 %, as an optimizer under an active
    # threshold does; what crowds at the threshold is what one-vector estimates lose.
    w = planted(torch.linspace(1.0, 0.0, 96), 144).float()
    blocks, threshold = BlockPower([(144, 96)], device=torch.device("cpu")), one(1.0)
    for step in range(60):
        w += 0.01 * (w + 0.3 * gaussian(144, 96, seed=step) / 144**0.5)
        sigma = blocks.step_([Matrix(w)]).sigma
        true = norm(w)
        assert true * (1 - 1e-3) <= float(sigma) <= true * (1 + 2e-6)
        upper = sigma_upper(w, sigma[0]).reshape(1) if strict else sigma * (1 + 1e-3)
        scale = rescale_([w], upper, threshold)
        assert norm(w) <= 1 + 1e-6
        assert float(scale) < 1
        assert norm(w) >= 1 - 1.1e-3  # shrunk by the margin and no more


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_entries_of_a_gain_are_clipped_on_both_sides(dtype: torch.dtype) -> None:
    gain = torch.tensor([1.5, -1.75, 0.5, -0.25, 0.0, 1.0], dtype=dtype)
    top = 1.0 if dtype.itemsize >= 4 else 1 - torch.finfo(dtype).eps / 2  # see `_aims`
    scale = clip_entries_(gain, torch.tensor(1.75), torch.tensor(1.0))
    assert gain.tolist() == torch.tensor([top, -top, 0.5, -0.25, 0.0, top]).to(dtype).tolist()
    assert float(scale) == pytest.approx(top / 1.75, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_row_of_a_table_is_longer_than_its_threshold_and_short_ones_keep_every_bit(
    dtype: torch.dtype,
) -> None:
    table = gaussian(400, 48)
    table *= torch.linspace(0.2, 2.0, 400).unsqueeze(1) / table.norm(dim=1, keepdim=True)
    table[:4] = 0.0
    table = table.to(dtype)
    table[5, 3], table[6, 3] = math.inf, math.nan
    before, lengths = table.clone(), table.double().norm(dim=1)
    scale = clip_rows_(table, torch.tensor(2.0), torch.tensor(1.0))
    after, short = table.double().norm(dim=1), ~(lengths > 0.98)
    short[5] = True  # of which nothing is known
    assert torch.equal(bits(table[short]), bits(before[short]))
    assert float(after[~short].max()) <= 1.0
    assert float(after[lengths > 1.01].min()) >= 0.98
    assert float(scale) == pytest.approx(0.5, rel=1e-2)


def test_the_scale_times_the_bound_is_at_most_the_threshold_in_exact_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    bounds = 1 + 9 * torch.rand(500, generator=generator)
    thresholds = bounds * (0.05 + 0.9 * torch.rand(500, generator=generator))
    weights = [torch.ones(1, 1) for _ in range(500)]
    scales = rescale_(weights, bounds, thresholds)

    def exceeds(factors: torch.Tensor) -> list[bool]:
        triples = zip(factors.tolist(), bounds.tolist(), thresholds.tolist(), strict=True)
        return [Fraction(f) * Fraction(b) > Fraction(t) for f, b, t in triples]

    assert not any(exceeds(scales))
    assert any(exceeds(thresholds / bounds)), "the quotient rounded to nearest would"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.01, 0.7, 1.3, 40.0])
def test_normalize_lands_at_the_threshold_from_both_sides(
    dtype: torch.dtype, factor: float
) -> None:
    w = (planted(SPECTRA["spike"], 120) * factor).to(dtype)
    true = norm(w)
    scale = normalize_([w], one(true), one(1.0))
    low = 1.3e-6 if dtype in (torch.float32, torch.float64) else 2 * torch.finfo(dtype).eps
    assert 1 - low <= norm(w) <= 1 + 6e-8
    assert float(scale[0]) == pytest.approx(1 / true, rel=low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("upper", "threshold"),
    [
        (1.0, 1.0),
        (1.0 - 2**-18, 1.0),
        (0.0, 1.0),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (2.0, math.inf),
        (2.0, math.nan),
    ],
)
def test_normalize_leaves_what_is_there_and_what_has_no_norm(
    dtype: torch.dtype, upper: float, threshold: float
) -> None:
    if dtype in LOW and upper > 0.99 and upper <= 1.0:
        upper = 1.0 - torch.finfo(dtype).eps / 2  # where its aim is
    w = gaussian(20, 30).to(dtype)
    w[0, :4] = torch.tensor([0.0, -0.0, math.inf, math.nan]).to(dtype)
    before = bits(w)
    assert normalize_([w], one(upper), one(threshold)) == torch.ones(1)
    assert torch.equal(bits(w), before)


def test_normalize_never_leaves_the_range_of_a_dtype() -> None:
    for dtype in DTYPES:
        w = torch.ones(1, 1, dtype=dtype)
        for _ in range(4):
            normalize_([w], one(float(w.double())), one(1e30))
        assert w.isfinite().all()
        w = torch.full((3, 3), 1e-7).to(dtype) * 1e-30
        normalize_([w], one(norm(w)), one(1.0))
        assert w.isfinite().all()


@pytest.mark.parametrize("shape", ["tall", "wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_through_singular_vectors_is_the_cap(dtype: torch.dtype, shape: str) -> None:
    values = torch.cat([torch.tensor([5.0, 1.5, 1.2]), torch.linspace(0.9, 0.0, 60)])
    w64 = planted(values, 120)
    w = (w64 if shape == "tall" else w64.mT).to(dtype).contiguous()
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    small = vh if shape == "tall" else u.mT
    mixed = 4 * torch.eye(8, dtype=torch.float64) + gaussian(8, 8, seed=1).double()
    rows = (mixed @ small[:8]).float()  # any vectors of that span
    found = seen(w, rows)
    assert float(found.largest) == pytest.approx(5.0, rel=1e-2)
    clip_seen_(w, rows, found, torch.tensor(1.0))
    expected = (u * s.clamp(max=1.0)) @ vh
    atol = 3e-6 if dtype in (torch.float32, torch.float64) else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(w.double(), expected, rtol=0, atol=atol)


def test_a_clip_through_wrong_vectors_lets_no_singular_value_grow() -> None:
    for seed, spectrum in enumerate(SPECTRA.values()):
        w = planted(spectrum, 120).float()
        before, rows = singular_values(w), gaussian(16, 96, seed=seed)
        found = seen(w, rows)
        aim = 0.5 * found.largest
        clip_seen_(w, rows, found, aim)
        assert (singular_values(w) <= before + 1e-6 * before[0]).all()
        # On the span of the rows the norm is the aim.
        q = torch.linalg.qr(rows.mT.double()).Q
        assert norm(w.double() @ q) <= float(aim) * (1 + 1e-5)


@pytest.mark.parametrize("largest", [10.0, 100.0, 3000.0])
def test_cap_is_right_within_5e_6_of_the_threshold_however_far_above(largest: float) -> None:
    values = torch.cat([torch.logspace(0, math.log10(largest), 40).flip(0), torch.rand(40)])
    w = planted(values, 100).double()
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    stored = w.float()
    cap_(stored, torch.tensor(largest * 1.001), torch.tensor(1.0))
    expected = (u * s.clamp(max=1.0)) @ vh
    # What float32 has rounded off the largest value was never there to be kept.
    rounded = norm(w - w.float().double())
    assert norm(stored.double() - expected) <= 5e-6 + 4 * rounded
    assert norm(stored) <= 1.0
