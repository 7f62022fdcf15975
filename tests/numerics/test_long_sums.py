"""sigma of tables and stacks whose sums are long: no rounding lifts it above the norm.

Rows that point the same way are the worst case: all terms of a sum have one sign, and where they
repeat, each addition is rounded alike.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from snc_client import measure
from snc_client.estimator import BlockPower
from snc_client.estimator.frobenius import by_rows
from snc_client.operators import BlockDiagonal, Matrix, Operator

ABOVE, BELOW = 2e-6, 1e-3
VALUES = (0.3, 0.7, 1 / 3, 0.55, 0.0217)


def estimate(operator: Operator, block: int) -> float:
    power = BlockPower([operator.shape], device=torch.device("cpu"), block=block)
    return float(power.step_([operator]).sigma)


def patterned(m: int, n: int, seed: int) -> tuple[Tensor, float]:
    """Return a rank-one table of few different numbers, and its norm.

    The norm of an outer product is that of the factors' product; storing it in float32 changes it
    by 6e-8 at most.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    x, y = kinds[0][torch.arange(m) % (1 + seed % 3)], kinds[1][torch.arange(n) % 2]
    return torch.outer(x, y).float(), float(x.norm() * y.norm())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize(
    "shape",
    [(700, 10), (3_000, 8), (6_000, 40), (20_000, 300), (128_256, 20), (128_256, 8), (70_000, 1)],
)
def test_sigma_of_a_long_table_is_the_norm_of_its_equal_rows(
    shape: tuple[int, int], block: int, wide: bool
) -> None:
    for seed, value in enumerate(VALUES if shape[1] < 100 else VALUES[:1]):
        constant = torch.full(shape, value)
        exact = float(constant[0, 0].double()) * (shape[0] * shape[1]) ** 0.5
        for w, norm in ((constant, exact), patterned(*shape, seed=seed)):
            found = estimate(Matrix(w.mT if wide else w), block)
            assert 1 - BELOW <= found / norm <= 1 + ABOVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_million_rows_are_summed_as_exactly(dtype: torch.dtype) -> None:
    w = torch.full((1_000_000, 8), 0.7, dtype=dtype)
    exact = float(w[0, 0].double()) * (8e6) ** 0.5
    assert 1 - BELOW <= estimate(Matrix(w), 8) / exact <= 1 + ABOVE


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("shape", [(4, 4096, 64), (2, 64, 1024), (32, 256, 4), (2, 1024, 8)])
def test_blocks_of_a_stack_are_summed_as_exactly(shape: tuple[int, int, int], block: int) -> None:
    for value in VALUES:
        stack = value * torch.linspace(0.4, 1.0, shape[0])[:, None, None].expand(shape)
        exact = float(stack[-1, 0, 0].double()) * (shape[1] * shape[2]) ** 0.5
        found = estimate(BlockDiagonal(stack.contiguous()), block)
        assert 1 - BELOW <= found / exact <= 1 + ABOVE


def test_measure_puts_the_norm_of_a_vocabulary_between_sigma_and_its_bound() -> None:
    w, norm = patterned(128_256, 8, seed=2)
    reading = measure(w)["0"]
    assert norm * (1 - BELOW) <= reading.sigma <= norm * (1 + ABOVE)
    assert norm <= reading.sigma_upper <= norm * (1 + 1.1e-3)


def test_the_frobenius_norm_of_a_million_rows_is_right_to_a_millionth() -> None:
    w = torch.full((1_000_000, 8), 0.7)
    assert float(by_rows(w)) == pytest.approx(float(w[0, 0].double()) * (8e6) ** 0.5, rel=1e-6)


def test_long_sums_keep_nan_and_infinity() -> None:
    for bad in (float("nan"), float("inf")):
        w = torch.ones(5_000, 20)
        w[4_999, 3] = bad
        assert torch.isnan(torch.tensor(estimate(Matrix(w), 8)))


@pytest.mark.parametrize("shape", [(4096, 16), (4096, 64), (64, 4096), (1000, 20), (3072, 768)])
def test_a_rank_one_table_of_one_number_is_not_overstated(shape: tuple[int, int]) -> None:
    """All its roundings go one way: sums of 4,096 terms in float32 were 2.7e-6 too long."""
    worst = 0.0
    for number in (0.1, 0.3, 0.7, 0.9, 1 / 3):
        w = torch.full(shape, number)
        exact = float(w[0, 0].double()) * math.sqrt(shape[0] * shape[1])
        blocks = BlockPower([shape], device=torch.device("cpu"))
        worst = max(worst, *(float(blocks.step_([Matrix(w)]).sigma) / exact - 1 for _ in range(3)))
    assert worst <= ABOVE
