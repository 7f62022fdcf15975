"""Where subnormal numbers count as zeros, no bound is below the norm of the numbers stored.

The oracle reads the numbers as integers, before the flag is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from spectra import gaussian
from torch import Tensor, nn

from snc_client.bounds import any_bound, bound
from snc_client.certificate import carry, certify, largest_upper, sigma_upper
from snc_client.layers import find_layers
from snc_client.operators import BlockDiagonal, Gain, LowRank, Matrix, Operator, Rows
from snc_client.precision import flushes, in_float64

LEAST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float64: 5e-324}
NORMAL = {torch.float32: 2.0**-126, torch.bfloat16: 2.0**-126, torch.float64: 2.0**-1022}


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def weights(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weights with subnormal entries, and the same numbers over the least of their dtype."""
    whole = NORMAL[dtype] / LEAST[dtype]
    units = {
        "all below": torch.full((30, 20), whole - 1, dtype=torch.float64),
        "one above": torch.full((40, 40), whole - 1, dtype=torch.float64),
        "least": torch.ones(5, 7, dtype=torch.float64),
        "random": (gaussian(24, 16).double() * whole / 8).round(),
        "half of it": (gaussian(24, 16).double() * whole * 2).round(),
    }
    units["one above"][0, 0] = whole + 8
    digits = {torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}[dtype]
    found = {}
    for name, unit in units.items():
        mantissa, exponent = torch.frexp(unit)
        kept = torch.ldexp(
            torch.round(torch.ldexp(mantissa, torch.tensor(digits + 1))), exponent - digits - 1
        )
        if dtype == torch.float64:
            stored = (kept * 2.0**-500) * 2.0**-574
        else:
            stored = (kept * LEAST[dtype]).to(dtype)
        found[name] = stored, kept
    return found


def norm_in_units(units: Tensor) -> float:
    return float(torch.linalg.matrix_norm(units, 2))


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64])
def stored(request: pytest.FixtureRequest) -> list[tuple[Tensor, float, torch.dtype]]:
    """Weights, their norm in units of the least number of the dtype, and that dtype."""
    dtype = request.param
    return [(w, norm_in_units(units), dtype) for w, units in weights(dtype).values()]


def test_the_flag_is_seen() -> None:
    assert not flushes()
    if torch.set_flush_denormal(True):
        seen = flushes()
        torch.set_flush_denormal(False)
        assert seen
        assert not flushes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_conversion_keeps_every_number_with_and_without_the_flag(dtype: torch.dtype) -> None:
    for w, units in weights(dtype).values():
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            wide, shift = in_float64(w)
            exact = units * (2.0 ** (shift - 1074) if dtype == torch.float64 else LEAST[dtype])
            same = torch.equal(wide, exact)
            torch.set_flush_denormal(False)
            assert same
    ordinary = gaussian(8, 5).to(dtype)
    wide, shift = in_float64(ordinary)
    assert shift == 0
    assert torch.equal(wide, ordinary.double())
    assert wide.data_ptr() != ordinary.data_ptr()


def test_no_certificate_passes_below_the_norm(
    stored: list[tuple[Tensor, float, torch.dtype]], flushing: None
) -> None:
    for w, units, dtype in stored:
        for part in (0.0, 0.3, 0.99, 1 - 1e-9):
            assert not certify(w, units * part * LEAST[dtype])
        if dtype != torch.float64:  # there the bound itself is a subnormal number: taken for zero
            assert certify(w, units * (1 + 1e-9) * LEAST[dtype])


def test_no_bound_is_below_the_norm(
    stored: list[tuple[Tensor, float, torch.dtype]], flushing: None
) -> None:
    for w, units, dtype in stored:
        true = units * LEAST[dtype] if dtype != torch.float64 else 2.0**-900
        for sigma in (true, 0.5 * true, 0.0, math.nan):
            assert float(sigma_upper(w, torch.tensor(sigma))) >= true
            upper = float(largest_upper(torch.stack([w, w]), torch.tensor(sigma)))
            assert upper >= true
            assert upper <= max(1.02 * true, NORMAL[torch.float32])


@pytest.mark.usefixtures("flushing")
def test_the_bound_of_each_kind_of_layer_covers_what_is_flushed() -> None:
    torch.set_flush_denormal(False)  # while the numbers are written
    tiny = torch.full((20, 30), 1.1e-38)  # below 2^-126 = 1.18e-38
    kernel = nn.Conv1d(20, 20, 3, padding=1, bias=False, padding_mode="circular")
    kernel.weight.data.fill_(1e-38)
    layers = find_layers(nn.Sequential(kernel), conv="operator", grids={"0": (8,)}).layers
    cases: list[tuple[Operator, float]] = [
        (Matrix(tiny), 1.1e-38 * math.sqrt(600)),
        (BlockDiagonal(tiny.expand(3, 20, 30).contiguous()), 1.1e-38 * math.sqrt(600)),
        (LowRank(tiny[:, :4].contiguous(), torch.full((4, 9), 1e10)), 1.1e-28 * 4 * math.sqrt(180)),
        (Gain(tiny[0].contiguous()), 1.1e-38),
        (Rows(tiny), 1.1e-38 * math.sqrt(30)),
        (layers[0].operator(), 60 * 1e-38),
    ]
    torch.set_flush_denormal(True)
    for operator, true in cases:
        upper = float(any_bound(operator, torch.tensor(0.0)))
        assert upper >= true * (1 - 1e-6)
    assert float(bound(Gain(torch.zeros(4)), torch.tensor(0.0))) < 1e-37


@pytest.mark.usefixtures("flushing")
def test_a_bound_that_is_carried_does_not_vanish() -> None:
    upper = torch.tensor([2.0**-126, 1.5 * 2.0**-126, 1.0])
    carried = carry(upper, scale=0.25)
    assert all(float(c) >= 0.25 * float(u) for c, u in zip(carried, [2.0**-126] * 2, strict=False))
    assert float(carried[0]) >= 2.0**-128


@pytest.mark.usefixtures("flushing")
def test_zero_stays_zero_and_ordinary_weights_keep_their_bounds() -> None:
    assert float(sigma_upper(torch.zeros(3, 4), torch.tensor(0.0))) == 0.0
    w = gaussian(30, 20)
    sigma = torch.linalg.matrix_norm(w, 2)
    flushed = sigma_upper(w, sigma)
    torch.set_flush_denormal(False)
    assert torch.equal(sigma_upper(w, sigma), flushed)


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
def test_float64_weights_of_any_scale_are_certified_in_either_arithmetic(arithmetic: str) -> None:
    for scale in (1e-300, 1e-60, 1.0, 1e60, 1e300):
        w = gaussian(20, 15).double()
        true = float(torch.linalg.matrix_norm(w, 2)) * scale
        assert certify(w * scale, true * (1 + 1e-5), arithmetic=arithmetic)
        assert not certify(w * scale, true * (1 - 1e-5), arithmetic=arithmetic)


def test_a_bound_whose_square_does_not_fit_is_proven() -> None:
    for high in (1e154, 1e200, 1e300):
        assert certify(gaussian(6, 5), high)
        assert certify(gaussian(6, 5), high, arithmetic="float32")
    assert not certify(gaussian(6, 5).double() * 1e300, 1e300)


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16", "", "proven"])
def test_an_unknown_arithmetic_is_refused(arithmetic: str) -> None:
    for ask in (certify, sigma_upper):
        with pytest.raises(ValueError, match="arithmetic must be 'float64', 'float32' or None"):
            ask(torch.ones(2, 2), torch.tensor(3.0), arithmetic=arithmetic)


def test_sparse_and_packed_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight must hold real numbers, .*sparse"):
        certify(torch.eye(3).to_sparse(), 2.0)
    packed = getattr(torch, "float4_e2m1fn_x2", None)
    if packed is not None:
        weight = torch.zeros(4, 4, dtype=torch.uint8).view(packed)
        with pytest.raises(ValueError, match="weight must hold real numbers"):
            certify(weight, 2.0)
