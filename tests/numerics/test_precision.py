from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from spectra import gaussian

from snc_client.precision import full_precision

CPU = torch.device("cpu")


def setting() -> object:
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return getattr(matmul, "fp32_precision", torch.get_float32_matmul_precision())


@pytest.fixture(autouse=True)
def _precision_put_back() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_are_full_inside_and_the_job_keeps_its_setting(allowed: str) -> None:
    a = gaussian(256, 256)
    exact = a.double() @ a.double()
    torch.set_float32_matmul_precision(allowed)
    before = setting()
    with full_precision(CPU), full_precision(CPU):
        # A sum of 256 products of unit variance: float32 errs by 1e-5, bfloat16 by 1e-1.
        assert float((a @ a - exact).abs().max()) < 1e-4
    assert setting() == before
    assert torch.get_float32_matmul_precision() == allowed


def test_autocast_is_off_inside_and_on_again_outside() -> None:
    a = gaussian(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(CPU):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_the_setting_comes_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("medium")
    before = setting()
    with pytest.raises(RuntimeError), full_precision(CPU):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert setting() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "conv"), reason="torch < 2.9 has one flag for all products"
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_convolutions_are_full_inside_and_the_job_keeps_its_setting(device: str) -> None:
    backend = torch.backends.cudnn if device == "cuda" else torch.backends.mkldnn
    before = backend.conv.fp32_precision
    backend.conv.fp32_precision = "tf32" if device == "cuda" else "bf16"
    try:
        lowered = backend.conv.fp32_precision
        with full_precision(torch.device(device)):
            assert backend.conv.fp32_precision == "ieee"
        assert backend.conv.fp32_precision == lowered
    finally:
        backend.conv.fp32_precision = before
