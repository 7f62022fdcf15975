"""The largest eigenvalue of a Gram matrix, beside the eigenvalues that it is made from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snc_client.lanczos import CLOSE, largest_eigenvalue

N = 200

SPECTRA = {
    "one apart": torch.linspace(0.1, 1.0, N).index_fill(0, torch.tensor([N - 1]), 3.0),
    "no gap": torch.linspace(0.0, 1.0, N),
    "two equal": torch.linspace(0.1, 1.0, N).index_fill(0, torch.tensor([N - 2]), 1.0),
    "all equal": torch.ones(N),
    "rank one": torch.eye(N)[0],
    "a cluster at the top": torch.cat(
        [torch.linspace(0.1, 0.9, N - 50), 1 - torch.rand(50) * 1e-7]
    ),
    "many decades": torch.logspace(-12, 0, N),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_it_is_the_largest_eigenvalue_from_below(spectrum: str) -> None:
    values = SPECTRA[spectrum].double()
    generator = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q
    g = (q * values) @ q.T
    found, exact = float(largest_eigenvalue(g)), float(values.amax())
    assert exact * (1 - CLOSE) <= found <= exact * (1 + 1e-13)


@pytest.mark.parametrize("g", [torch.tensor([[4.0]]), torch.zeros(3, 3), torch.eye(2) * 5])
def test_the_smallest_matrices_have_one_too(g: Tensor) -> None:
    assert float(largest_eigenvalue(g.double())) == pytest.approx(float(g.amax()), rel=1e-14)
