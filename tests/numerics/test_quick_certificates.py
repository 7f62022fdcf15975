"""A certificate whose Gram matrix consists of short float32 sums: as proven, and the same bound."""

from __future__ import annotations

import pytest
import torch
from spectra import SPECTRA, gaussian, norm, planted
from torch import Tensor

from snc_client import certificate
from snc_client.certificate import RUNGS, rounded_up, sigma_upper

SHAPES = [(128, 128), (300, 130), (130, 517), (256, 256)]


def constant(value: float) -> Tensor:
    """Return a matrix whose 4,096 equal terms a float32 sum gets wrong in one direction."""
    return torch.full((4096, 128), value)


def matrices() -> list[Tensor]:
    found = [gaussian(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    found += [planted(s, 150).float() for s in SPECTRA.values()]
    found += [constant(x) for x in (0.1, 0.3, 0.7, 1 / 3)]
    return [*found, found[0].bfloat16(), found[1].half(), 1e-20 * found[0], 1e15 * found[1]]


def refuse(*_: object) -> Tensor:
    raise AssertionError("no product in float64 is needed")


def test_no_bound_from_short_float32_sums_is_below_the_norm() -> None:
    for w in matrices():
        true = norm(w.double())
        for below in (1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 5e-7, 1e-7, 1e-8, 0.0, -1e-4):
            first_try = torch.tensor(true * (1 - below) / (1 + RUNGS[0]), dtype=torch.float64)
            assert float(sigma_upper(w, first_try)) >= true * (1 - 1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_float32_sums_prove_what_float64_proves(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = gaussian(*shape, seed=3).to(dtype)
    sigma = torch.tensor(norm(w.double()) * (1 - 1e-5), dtype=torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr(certificate, "lower_gram", refuse)
        quick = sigma_upper(w, sigma)
    with monkeypatch.context() as patched:
        patched.setattr(certificate, "lower_gram_in_pieces", refuse)
        patched.setattr(certificate, "QUICK_SIDE", 10**9)
        assert torch.equal(sigma_upper(w, sigma), quick)
    assert torch.equal(quick, rounded_up(sigma.double() * (1 + RUNGS[0])))


def test_float64_decides_where_float32_sums_would_have_to_be_too_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certificate, "lower_gram_in_pieces", refuse)
    everywhere_one = torch.eye(640)  # ||W||_F^2 is 640 ||W||^2
    assert 1.0 <= float(sigma_upper(everywhere_one, torch.tensor(1.0))) <= 1.0011
    for value in (float("nan"), float("inf")):
        broken = gaussian(200, 200, seed=1)
        broken[3, 4] = value
        assert float(sigma_upper(broken, torch.tensor(1.0))) == float("inf")
    assert float(sigma_upper(torch.zeros(200, 200), torch.tensor(0.0))) == 0.0


@pytest.mark.parametrize("mode", ["BF16", "any"])
def test_float64_decides_where_the_environment_lets_products_round(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    w = gaussian(256, 256, seed=1)
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", mode)
    monkeypatch.setattr(certificate, "lower_gram_in_pieces", refuse)
    assert norm(w.double()) <= float(sigma_upper(w, torch.tensor(norm(w.double()))))


def test_float16_on_a_cpu_is_certified_within_autocast() -> None:
    """`torch.stack` refuses float16 there."""
    w = gaussian(256, 200, seed=2).half()
    sigma = torch.tensor(norm(w.double()))
    with torch.autocast("cpu"):
        upper = sigma_upper(w, sigma)
    assert torch.equal(upper, sigma_upper(w, sigma))
