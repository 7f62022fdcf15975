"""Bounds of convolutions as maps: never below the explicit matrix's norm, and how far above."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from spectra import norm
from torch import Tensor, nn

from snc_client import measure
from snc_client.bounds import convolution_bound
from snc_client.certificate import largest_upper
from snc_client.convolution_bounds.absolute_values import absolute_bound
from snc_client.convolution_bounds.torus import on_torus
from snc_client.layers import find_layers
from snc_client.operators import Convolution, Geometry

MODES = ("zeros", "circular", "reflect", "replicate")
ROUNDING = 1.1e-3  # the first rung


def exact(module: nn.Module, grid: tuple[int, ...]) -> float:
    """Return the spectral norm of the module's explicit matrix, in float64."""
    module = module.double()
    inputs = module.in_channels * torch.Size(grid).numel()
    image = torch.eye(inputs, dtype=torch.float64).view(inputs, module.in_channels, *grid)
    with torch.no_grad():
        return norm(module(image).flatten(1).T)


def bound(module: nn.Module, grid: tuple[int, ...]) -> float:
    (layer,) = find_layers(
        nn.ModuleDict({"c": module.float()}), conv="operator", grids={"c": grid}
    ).layers
    return float(convolution_bound(layer.operator()))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kernel", ["init", "constant", "difference"])
@pytest.mark.parametrize("mode", MODES)
def test_no_bound_is_below_the_map_whatever_stride_dilation_groups_and_padding(mode, kernel):
    for stride, dilation, groups, padding, size in itertools.product(
        (1, 2, 3), (1, 2), (1, 2), (0, 1, 2), (2, 3)
    ):
        module = nn.Conv1d(
            4, 6, size, stride, padding, dilation, groups, bias=False, padding_mode=mode
        )
        if kernel == "constant":
            nn.init.constant_(module.weight, 0.3)
        elif kernel == "difference":  # its norm is at the highest frequency
            nn.init.constant_(module.weight, 0.3)
            module.weight.data[..., ::2] *= -1
        for grid in ((7,), (8,), (9,)):
            assert exact(module, grid) <= bound(module, grid)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
def test_no_bound_is_below_the_map_in_two_dimensions(mode, stride):
    for groups in (1, 3):
        module = nn.Conv2d(3, 6, 3, stride, (1, 2), groups=groups, bias=False, padding_mode=mode)
        for grid in ((6, 5), (8, 8)):
            assert exact(module, grid) <= bound(module, grid)


def test_no_bound_is_below_the_map_in_three_dimensions():
    module = nn.Conv3d(2, 3, 2, 2, 1, bias=False)
    assert exact(module, (4, 5, 3)) <= bound(module, (4, 5, 3))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_and_unequal_ends(padding):
    module = nn.Conv1d(3, 4, 3, 1, padding, 2, bias=False)
    assert exact(module, (9,)) <= bound(module, (9,)) <= 1.2 * exact(module, (9,))


@pytest.mark.parametrize(("stride", "padding", "extra"), [(1, 0, 0), (2, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_transposed_convolution_is_bounded_as_its_adjoint(stride, padding, extra, dilation):
    for groups in (1, 2):
        module = nn.ConvTranspose1d(
            4, 6, 3, stride, padding, extra, groups, bias=False, dilation=dilation
        )
        for grid in ((4,), (7,)):
            assert exact(module, grid) <= bound(module, grid) <= 1.6 * exact(module, grid)


@pytest.mark.parametrize("stride", [1, 2])
def test_circular_padding_is_exact_up_to_the_rung(stride):
    module = nn.Conv2d(4, 4, 3, stride, 1, bias=False, padding_mode="circular")
    true = exact(module, (8, 8))
    assert true <= bound(module, (8, 8)) <= true * (1 + ROUNDING)


@pytest.mark.parametrize(("side", "loose"), [(8, 0.09), (16, 0.02)])
def test_with_zeros_it_is_as_tight_as_is_said(side, loose):
    module = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
    assert bound(module, (side, side)) <= exact(module, (side, side)) * (1 + loose)


def test_a_torus_of_the_inputs_size_would_be_no_bound_with_reflection():
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="reflect")
    nn.init.constant_(module.weight, 1.0)
    circular = 9.0  # the largest Fourier coefficient of a kernel of ones
    assert circular < exact(module, (8, 8)) <= bound(module, (8, 8))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale):
    module = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    module.weight.data.mul_(scale)
    assert exact(module, (6, 6)) <= bound(module, (6, 6)) <= 1.2 * exact(module, (6, 6))


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (float("nan"), float("inf"))])
def test_zero_and_what_is_not_finite(value, expected):
    module = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    nn.init.constant_(module.weight, value)
    assert bound(module, (6, 6)) == pytest.approx(expected, abs=1e-30)


def test_what_would_take_too_long_is_not_bounded():
    weight = torch.zeros(512, 512, 3, 3)
    geometry = Geometry((128, 128), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert on_torus(Convolution(weight, geometry)) is None
    assert absolute_bound(Convolution(weight, geometry)) is None
    assert convolution_bound(Convolution(weight, geometry)).isnan()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("positive", [True, False])
def test_the_bound_by_absolute_values_holds_and_is_near_without_negative_entries(
    mode, stride, dilation, groups, positive
):
    module = nn.Conv2d(4, 6, 3, stride, dilation, dilation, groups, False, mode)
    module.weight.data = module.weight.data.abs() if positive else module.weight.data
    (layer,) = find_layers(module, conv="operator", grids={"": (7, 8)}).layers
    found = float(absolute_bound(layer.operator()))
    true = exact(module, (7, 8))
    assert true <= found
    assert not positive or found <= true * (1 + 1e-2)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 0.0, math.nan, math.inf])
def test_the_bound_by_absolute_values_holds_at_any_scale(scale):
    module = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    module.weight.data = torch.full_like(module.weight, scale)
    (layer,) = find_layers(module, conv="operator", grids={"": (5, 5)}).layers
    found = float(absolute_bound(layer.operator()))
    if not math.isfinite(scale):
        assert found == math.inf
        return
    stored = float(module.weight.data[0, 0, 0, 0].double())
    module.weight.data = torch.ones_like(module.weight)
    unit = exact(module, (5, 5))
    assert stored * unit * (1 - 1e-9) <= found <= stored * unit * (1 + 1e-4)


def test_measure_bounds_convolutions_as_maps_where_it_is_asked_to():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 2, 1))
    found = measure(model, conv="operator", grids={"0": (8, 8), "1": (8, 8)})
    true = exact(model[0], (8, 8))
    assert found["0.weight"].sigma == pytest.approx(true, rel=1e-3)
    assert true <= found["0.weight"].sigma_upper <= 1.1 * true
    assert found["0.weight"].sigma > measure(model.float())["0.weight"].sigma


def test_a_stack_is_bounded_by_its_largest_and_from_any_estimate():
    stack = torch.randn(5, 7, 4)
    largest = max(norm(w) for w in stack)
    for sigma in (largest, 0.5 * largest, 0.0):
        upper = float(largest_upper(stack, torch.tensor(sigma)))
        assert largest <= upper
    assert float(largest_upper(stack, torch.tensor(largest))) <= largest * (1 + ROUNDING)
    poisoned: Tensor = stack.clone()
    poisoned[3, 1, 1] = torch.nan
    assert float(largest_upper(poisoned, torch.tensor(largest))) == float("inf")
