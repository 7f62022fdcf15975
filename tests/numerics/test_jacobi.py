from __future__ import annotations

import pytest
import torch
from spectra import gaussian, planted

from snc_client.estimator import jacobi
from snc_client.estimator.ritz import orthonormalizer, revive, ritz


def grams(b: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    blocks = torch.stack([gaussian(b, 40, seed=seed) for seed in range(6)])
    return (blocks @ blocks.mT).to(dtype)


@pytest.mark.parametrize("b", [1, 2, 3, 7, 8, 15, 16])
def test_jacobi_agrees_with_lapack(b: int) -> None:
    g = grams(b)
    values, vectors = jacobi.eigh(g)
    expected = torch.linalg.eigvalsh(g.double())
    size = expected[:, -1:]
    assert torch.all((values - expected).abs() <= 4e-6 * size)  # 75 float32 rotations
    eye = torch.eye(b).expand_as(g)
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=5e-6)
    rebuilt = (vectors * values.unsqueeze(-2)) @ vectors.mT
    assert torch.all((rebuilt - g).abs() <= 5e-6 * size.unsqueeze(-1))


def test_the_sweeps_are_enough_from_any_start_and_two_from_a_warm_one() -> None:
    g = grams(16, torch.float64)
    _, vectors = jacobi.eigh(g)
    off = vectors.mT @ g @ vectors
    off = off - torch.diag_embed(off.diagonal(dim1=-2, dim2=-1))
    assert float(off.abs().amax() / g.abs().amax()) < 1e-6
    warm = torch.diag(torch.linspace(2, 1, 16, dtype=torch.float64)) + 1e-3 * g / g.abs().amax()
    values, _ = jacobi.eigh(warm, sweeps=2)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(warm), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-18, 1e18])
def test_zero_diagonal_repeated_and_scaled_matrices(scale: float) -> None:
    for g in (torch.eye(8), torch.diag(torch.tensor([3.0, 1, 1, 2])), torch.ones(5, 5)):
        values, vectors = jacobi.eigh((g * scale).unsqueeze(0))
        expected = torch.linalg.eigvalsh(g.double()) * scale
        torch.testing.assert_close(
            values[0].double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())
        )
        assert vectors.isfinite().all()


def test_ritz_vectors_are_as_good_with_jacobi_as_with_lapack() -> None:
    w = planted(torch.linspace(1, 0.5, 50)).float()
    u = torch.stack([gaussian(16, 50, seed=seed) for seed in range(4)])
    x = u @ w
    r, g = u @ u.mT, x @ x.mT
    ours, theirs = ritz(r, g, eigh=jacobi.eigh), ritz(r, g)
    quotients = [(found.growth / found.reach).sqrt() for found in (ours, theirs)]
    torch.testing.assert_close(quotients[0], quotients[1], rtol=2e-6, atol=0)


def test_ritz_flags_what_is_not_finite_and_keeps_the_others() -> None:
    g = grams(4)
    g[2, 0, 1] = torch.nan
    found = ritz(grams(4), g)
    assert found.finite.tolist() == [True, True, False, True, True, True]
    assert all(field.isfinite().all() for field in found[:3])


def test_dead_and_poisoned_rows_are_replaced_and_the_block_is_orthonormal() -> None:
    y = torch.stack([gaussian(5, 30), torch.zeros(5, 30), gaussian(5, 30) * torch.nan])
    y[0, 3] = 1e-7 * y[0, 0]
    noise = gaussian(5, 30, seed=9)
    unit = revive(y.clone(), lambda: noise / noise.norm(dim=1, keepdim=True))
    block = orthonormalizer(unit @ unit.mT) @ unit
    eye = torch.eye(5).expand(3, 5, 5)
    # Shorter by half the shift of 1e-5, never longer.
    torch.testing.assert_close(block @ block.mT, eye, rtol=0, atol=5e-5)
    assert float(torch.linalg.matrix_norm(block, 2).max()) <= 1 + 1e-6


def test_a_failing_factor_leaves_the_block_as_it_is() -> None:
    c = torch.stack([torch.eye(3), -torch.eye(3), torch.full((3, 3), torch.nan)])
    turn = orthonormalizer(c)
    assert torch.equal(turn[1:], torch.eye(3).expand(2, 3, 3))
