"""The linear maps, each against the explicit dense matrix and float64 singular values."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snc_client.operators import (
    BlockDiagonal,
    Convolution,
    Gain,
    Geometry,
    LowRank,
    Matrix,
    Operator,
    Rows,
)


def dense(operator: Operator) -> torch.Tensor:
    """Return the operator as an explicit matrix, column by column."""
    return operator.matmul(torch.eye(operator.shape[1]))


def spectral_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.double())[0])


def assert_is(operator: Operator, matrix: torch.Tensor, atol: float = 1e-5) -> None:
    """Check the shape, and both products against ``matrix`` and its transpose."""
    assert operator.shape == tuple(matrix.shape)
    torch.testing.assert_close(dense(operator), matrix.float(), atol=atol, rtol=1e-5)
    transpose = operator.rmatmul(torch.eye(operator.shape[0]))
    torch.testing.assert_close(transpose, matrix.float().t(), atol=atol, rtol=1e-5)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_matrix_multiplies_from_both_sides():
    weight = seeded(7, 5)
    assert_is(Matrix(weight), weight)
    assert_is(Matrix(weight.t()), weight.t())


def test_a_matrix_in_float32_is_never_copied():
    weight = seeded(6, 4)
    assert Matrix(weight).weight.data_ptr() == weight.data_ptr()
    assert Matrix(weight.t()).weight.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_products_are_float32_products_of_the_stored_numbers(dtype):
    weight = seeded(40, 30).to(dtype)
    v = seeded(30, 3, seed=1)
    exact = weight.double() @ v.double()
    product = Matrix(weight).matmul(v)
    assert product.dtype == torch.float32
    # A product with bfloat16 or float16 vectors would be wrong by 1e-3.
    assert float((product - exact).abs().max() / exact.abs().max()) < 2e-6
    assert Matrix(weight).rmatmul(seeded(40, 3)).dtype == torch.float32
    assert Matrix(weight).amax().dtype == torch.float32


def test_float16_at_the_edge_of_its_range_does_not_overflow():
    weight = torch.full((8, 8), 6e4, dtype=torch.float16)
    assert spectral_norm(dense(Matrix(weight))) == pytest.approx(8 * float(weight[0, 0]), rel=1e-6)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [([1.0, -3.0], 3.0), ([0.0, -0.0], 0.0), ([float("-inf"), 1.0], float("inf"))],
)
def test_amax_is_the_largest_absolute_entry(entries, expected):
    amax = Matrix(torch.tensor([entries])).amax()
    assert amax.shape == ()
    assert float(amax) == expected


@pytest.mark.parametrize("entries", [[float("nan"), 1.0], [1.0, float("nan")]])
def test_nan_reaches_amax_and_every_product(entries):
    matrix = Matrix(torch.tensor([entries, [0.0, 0.0]]))
    assert torch.isnan(matrix.amax())
    assert torch.isnan(matrix.matmul(torch.zeros(2, 1))[0, 0])
    assert torch.isnan(matrix.rmatmul(torch.zeros(2, 1))).any()


def test_blocks_are_a_block_diagonal_matrix():
    blocks = seeded(3, 4, 2)
    assert_is(BlockDiagonal(blocks), torch.block_diag(*blocks))
    largest = max(map(spectral_norm, blocks))
    assert spectral_norm(dense(BlockDiagonal(blocks))) == pytest.approx(largest, rel=1e-6)


def test_blocks_may_be_a_transposed_view():
    blocks = seeded(3, 4, 2).mT
    assert_is(BlockDiagonal(blocks), torch.block_diag(*blocks))


def test_a_low_rank_product_is_never_formed_but_multiplies_as_if_it_were():
    b, a = seeded(50, 3), seeded(3, 40, seed=1)
    operator = LowRank(b, a)
    assert_is(operator, b @ a, atol=1e-4)
    assert float(operator.amax()) == pytest.approx(float(b.abs().max() * a.abs().max()))
    assert spectral_norm(dense(operator)) == pytest.approx(spectral_norm(b @ a), rel=1e-6)


def test_a_fresh_lora_pair_is_the_zero_map():
    operator = LowRank(torch.zeros(5, 2), seeded(2, 4))
    assert float(operator.amax()) == 0.0
    assert not dense(operator).any()


MODES = ("zeros", "reflect", "replicate", "circular")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_what_torch_computes(mode, stride, dilation, groups):
    for padding in (0, 1, 2):
        module = nn.Conv2d(
            4, 8, 3, stride, padding, dilation, groups, bias=False, padding_mode=mode
        )
        pads = ((padding, padding),) * 2
        geometry = Geometry((7, 6), (stride,) * 2, pads, (dilation,) * 2, groups, mode)
        operator = Convolution(module.weight, geometry)
        impulses = torch.eye(4 * 7 * 6).reshape(-1, 4, 7, 6)
        with torch.no_grad():
            assert_is(operator, module(impulses).flatten(1).t())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_of_one_and_three_dimensions_are_what_torch_computes(mode, dimensions):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions]
    module = kind(2, 3, 3, stride=2, padding=1, bias=False, padding_mode=mode)
    grid = (5, 4, 6)[:dimensions]
    geometry = Geometry(grid, module.stride, ((1, 1),) * dimensions, module.dilation, mode=mode)
    operator = Convolution(module.weight, geometry)
    impulses = torch.eye(operator.shape[1]).reshape(-1, 2, *grid)
    with torch.no_grad():
        assert_is(operator, module(impulses).flatten(1).t())


def test_padding_may_differ_between_the_two_ends():
    weight = seeded(2, 2, 4)
    operator = Convolution(weight, Geometry((6,), (1,), ((1, 2),), (1,)))
    impulses = F.pad(torch.eye(12).reshape(-1, 2, 6), (1, 2))
    assert_is(operator, F.conv1d(impulses, weight).flatten(1).t())


def test_a_circular_convolution_has_the_norm_that_fourier_gives():
    kernel = seeded(5, 3, 3, 3)
    operator = Convolution(
        kernel, Geometry((8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "circular")
    )
    # Sedghi, Gupta, Long 2019: the singular values are those of the transfer matrices.
    transfer = np.fft.fft2(kernel.double().numpy(), (8, 8))
    expected = np.linalg.svd(transfer.transpose(2, 3, 0, 1), compute_uv=False).max()
    assert spectral_norm(dense(operator)) == pytest.approx(expected, rel=1e-6)


def test_reflection_can_exceed_the_circular_norm():
    kernel = torch.ones(1, 1, 3, 3)
    norms = {}
    for mode in MODES:
        geometry = Geometry((8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, mode)
        norms[mode] = spectral_norm(dense(Convolution(kernel, geometry)))
    assert norms["circular"] == pytest.approx(9.0, rel=1e-6)
    assert norms["reflect"] > 9.2
    assert norms["zeros"] < 9.0


def test_the_norm_of_a_convolution_grows_with_its_grid():
    kernel = seeded(3, 3, 3, 3)
    norms = [
        spectral_norm(dense(Convolution(kernel, Geometry((h, h), (1, 1), ((1, 1),) * 2, (1, 1)))))
        for h in (3, 5, 8)
    ]
    assert norms == sorted(norms)
    reshaped = spectral_norm(kernel.flatten(1))
    assert norms[-1] <= 3 * reshaped * (1 + 1e-6)  # sqrt(kh*kw) times at most


def test_a_convolution_in_bfloat16_multiplies_in_float32():
    kernel = seeded(4, 2, 3).bfloat16()
    operator = Convolution(kernel, Geometry((6,), (1,), ((1, 1),), (1,)))
    exact = Convolution(kernel.float(), operator.geometry)
    assert_is(operator, dense(exact), atol=1e-7)
    assert float(operator.amax()) == float(kernel.abs().max())


def test_no_product_records_a_gradient():
    weight = nn.Parameter(seeded(4, 4))
    kernel = nn.Parameter(seeded(4, 4, 3))
    operators: list[Operator] = [
        Matrix(weight),
        BlockDiagonal(nn.Parameter(seeded(2, 3, 4))),
        LowRank(weight, weight),
        Convolution(kernel, Geometry((5,), (1,), ((1, 1),), (1,), mode="reflect")),
    ]
    for operator, side in itertools.product(operators, (0, 1)):
        product = operator.rmatmul if side == 0 else operator.matmul
        assert not product(torch.ones(operator.shape[side], 2)).requires_grad
        assert not operator.amax().requires_grad


def test_no_product_changes_the_global_random_state():
    before = torch.get_rng_state()
    assert_is(LowRank(seeded(3, 2), seeded(2, 3)), seeded(3, 2) @ seeded(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Matrix(torch.ones(3)), "2 dimensions"),
        (lambda: BlockDiagonal(torch.ones(3, 3)), "3 dimensions"),
        (lambda: LowRank(torch.ones(3, 2), torch.ones(3, 2)), "inner size"),
        (
            lambda: Convolution(torch.ones(1, 1, 5), Geometry((3,), (1,), ((0, 0),), (1,))),
            "grid must hold the kernel and its padding",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("factor", [1.0, 0.125])
def test_the_small_matrix_of_a_product_has_its_singular_values(scale, factor):
    b, a = scale * seeded(50, 3), seeded(3, 40, seed=1)
    matrix, error = LowRank(b, a, factor).small()
    exact = torch.linalg.svdvals(factor * b.double() @ a.double())[:3]
    found = torch.linalg.svdvals(matrix)
    assert matrix.shape == (3, 3)
    assert float((found - exact).abs().max()) <= float(error) <= 1e-8 * float(exact[0])


def test_the_small_matrix_of_factors_shorter_than_the_rank_fits_too():
    matrix, _ = LowRank(seeded(2, 5), seeded(5, 3, seed=1)).small()
    exact = torch.linalg.svdvals(seeded(2, 5).double() @ seeded(5, 3, seed=1).double())
    found = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(found[:2], exact)


def test_the_small_matrix_of_zeros_is_zero():
    matrix, error = LowRank(torch.zeros(4, 2), seeded(2, 4)).small()
    assert not matrix.any()
    assert float(error) == 0.0


def test_a_gain_and_rows_multiply_by_their_norm():
    gain, rows = Gain(torch.tensor([1.0, -3.0])), Rows(torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
    for operator, norm in ((gain, 3.0), (rows, 5.0)):
        one = torch.ones(operator.shape[1], 2)
        assert operator.matmul(one).tolist() == operator.rmatmul(one).tolist() == [[norm, norm]]
        assert norm <= float(operator.upper()) <= norm * (1 + 2e-6)
        assert all(x.data_ptr() == operator.weight.data_ptr() for x in operator.tensors)
    halved = Gain(torch.tensor([1.0, -3.0]), torch.tensor([1.0, 2.0]))
    assert float(halved.amax()) == 1.5
    assert len(halved.tensors) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_finite_bound(bad):
    assert float(Gain(torch.tensor([1.0, bad])).upper()) == math.inf
    assert float(Rows(torch.tensor([[1.0, bad], [1.0, 1.0]])).upper()) == math.inf
