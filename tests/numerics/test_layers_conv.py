"""Convolutions by their reshaped kernels and as operators, against explicit dense matrices."""

import itertools

import pytest
import torch
from torch import nn
from weights import assert_measures, assert_scales, dense, named, spectral_norm

from snc_client.layers import find_layers, watch_grids

PAIRS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d),
         3: (nn.Conv3d, nn.ConvTranspose3d)}  # fmt: skip
MODES = ("zeros", "reflect", "replicate", "circular")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def only(model, **options):
    (layer,) = find_layers(nn.ModuleDict({"conv": model}), **options).layers
    return layer


def applied(module: nn.Module, grid: tuple[int, ...]) -> torch.Tensor:
    """Return the matrix that the module's forward applies to inputs of this size."""
    channels = module.in_channels
    impulses = torch.eye(channels * torch.Size(grid).numel()).reshape(-1, channels, *grid)
    with torch.no_grad():
        return module(impulses).flatten(1).t()


def blocks(module: nn.Module) -> torch.Tensor:
    """Return a kernel as its block-diagonal matrix outputs x (inputs*kernel), slice by slice."""
    weight, groups = module.weight.detach(), module.groups
    if module.transposed:
        rows = weight.shape[0] // groups
        cut = [weight[g * rows : (g + 1) * rows].transpose(0, 1) for g in range(groups)]
    else:
        rows = weight.shape[0] // groups
        cut = [weight[g * rows : (g + 1) * rows] for g in range(groups)]
    return torch.block_diag(*(part.reshape(part.shape[0], -1) for part in cut))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_kernel_is_reshaped_group_by_group(dimensions, groups, transposed):
    module = PAIRS[dimensions][transposed](4, 8, 3, groups=groups)
    layer = only(module)
    assert layer.kind == ("conv_transpose" if transposed else "conv")
    assert layer.shape == tuple(module.weight.shape)
    assert_measures(layer, blocks(module))
    assert_scales(layer, [])


def test_a_depthwise_kernel_is_not_measured_as_if_its_channels_mixed():
    module = nn.Conv2d(64, 64, 3, groups=64)
    per_channel = max(float(kernel.norm()) for kernel in module.weight.detach())
    assert spectral_norm(dense(only(module))) == pytest.approx(per_channel, rel=1e-6)
    assert spectral_norm(module.weight.flatten(1)) > 1.5 * per_channel


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_last_is_measured_and_written_in_place(groups):
    module = nn.Conv2d(4, 6, 3, groups=groups).to(memory_format=torch.channels_last)
    layer = only(module)
    assert_measures(layer, blocks(module))
    assert layer.weight().data_ptr() == module.weight.data_ptr()
    assert layer.weight().ndim == (2 if groups == 1 else 4)
    assert_scales(layer, [])


def test_an_ungrouped_kernel_can_be_capped_through_its_2d_view():
    layer = only(nn.Conv2d(3, 4, 3))
    assert layer.cappable
    assert layer.weight().shape == (4, 27)
    with torch.no_grad():
        layer.weight().copy_(torch.eye(4, 27))
    assert_measures(layer, torch.eye(4, 27))


def test_memory_that_has_no_2d_view_is_still_measured_and_written():
    module = nn.Conv2d(3, 4, 3)
    module.weight = nn.Parameter(torch.randn(4, 3, 3, 6)[..., ::2])
    layer = only(module)
    assert_measures(layer, module.weight.flatten(1))
    assert_scales(layer, [])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # costs a copy
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_operator_is_what_the_forward_applies(mode, padding, dilation):
    for kernel, groups in itertools.product((2, 3), (1, 2)):
        module = nn.Conv1d(
            2, 4, kernel, 1, padding, dilation, groups, bias=False, padding_mode=mode
        )
        layer = only(module, conv="operator", grids={"conv": (9,)})
        torch.testing.assert_close(dense(layer), applied(module, (9,)), atol=1e-6, rtol=1e-5)
        assert_scales(layer, [])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operator_of_any_dimension_and_stride(dimensions, stride):
    module = PAIRS[dimensions][0](2, 3, 3, stride, padding=1, bias=False)
    grid = (5, 6, 4)[:dimensions]
    layer = only(module, conv="operator", grids={"conv": grid})
    torch.testing.assert_close(dense(layer), applied(module, grid), atol=1e-6, rtol=1e-5)
    adjoint = layer.operator().rmatmul(torch.eye(layer.fan_out))
    torch.testing.assert_close(adjoint, dense(layer).t(), atol=1e-6, rtol=1e-5)
    assert "on " + "x".join(map(str, grid)) in layer.note


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "groups", "dilation"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 1, 2, 2, 1), (2, 2, 0, 2, 2), (1, 0, 2, 1, 3)],
)
def test_a_transposed_operator_is_what_the_forward_applies(
    dimensions, stride, padding, extra, groups, dilation
):
    module = PAIRS[dimensions][1](
        2, 4, 3, stride, padding, extra, groups, bias=False, dilation=dilation
    )
    grid = (4, 3, 2)[:dimensions]
    layer = only(module, conv="operator", grids={"conv": grid})
    torch.testing.assert_close(dense(layer), applied(module, grid), atol=1e-6, rtol=1e-5)
    adjoint = layer.operator().rmatmul(torch.eye(layer.fan_out))
    torch.testing.assert_close(adjoint, dense(layer).t(), atol=1e-6, rtol=1e-5)
    assert_scales(layer, [])


def test_reflection_makes_the_operator_larger_than_the_circular_one():
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="reflect")
    nn.init.constant_(module.weight, 1.0)
    circular = 9.0  # the kernel's sum: the largest Fourier coefficient of a positive kernel
    assert spectral_norm(dense(only(module, conv="operator", grids={"conv": (8, 8)}))) > circular


def test_a_reshaped_kernel_is_not_the_norm_of_the_map():
    module = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    nn.init.constant_(module.weight, 0.1)
    reshaped, true = (
        spectral_norm(dense(only(module, conv=conv))) for conv in ("reshape", "operator")
    )
    assert 2.5 * reshaped < true <= 3 * reshaped


def test_without_a_grid_the_operator_acts_on_16_or_what_the_kernel_needs():
    assert only(nn.Conv1d(1, 1, 3), conv="operator").fan_in == 16
    assert only(nn.Conv1d(1, 1, 21), conv="operator").fan_in == 21
    assert only(nn.Conv1d(1, 1, 11, dilation=2), conv="operator").fan_in == 21


def test_a_patch_embedding_has_the_norm_of_its_reshaped_kernel():
    module = nn.Conv2d(3, 8, 4, stride=4, bias=False)
    expected = spectral_norm(module.weight.flatten(1))
    assert spectral_norm(dense(only(module, conv="operator"))) == pytest.approx(expected, rel=1e-6)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.down = nn.Conv2d(2, 2, 3, stride=2)
        self.up = nn.ConvTranspose2d(2, 1, 2)
        self.unused = nn.Conv2d(1, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(input=self.down(self.stem(x)))


def test_grids_are_seen_in_a_forward_and_the_hooks_are_gone_after_it():
    model = Small()
    with watch_grids(model) as grids:
        model(torch.ones(2, 1, 30, 9))
    assert grids == {"stem": (16, 9), "down": (16, 9), "up": (14, 4)}
    assert not any(module._forward_pre_hooks for module in model.modules())
    layers = named(find_layers(model, conv="operator", grids=grids))
    assert layers["stem.weight"].fan_in == 16 * 9
    assert layers["unused.weight"].fan_in == 16 * 16


def test_a_grid_is_not_cut_below_the_kernel():
    model = Small()
    with watch_grids(model, most=2) as grids:
        model(torch.ones(1, 1, 30, 9))
    assert grids == {"stem": (3, 3), "down": (3, 3), "up": (2, 2)}


def test_the_largest_grid_of_several_forwards_counts():
    model = Small()
    with watch_grids(model, most=64) as grids:
        model(torch.ones(1, 1, 8, 20))
        model(torch.ones(1, 1, 12, 9))
    assert grids["stem"] == (12, 20)


def test_the_hooks_are_gone_after_a_forward_that_fails():
    model = Small()
    with pytest.raises(RuntimeError), watch_grids(model):
        model(torch.ones(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((0,), {}),
        ((2,), {}),
        ((4, 4), {}),
        ((2,), {"padding": 2, "padding_mode": "reflect"}),
        ((2,), {"padding": 3, "padding_mode": "circular"}),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_naming_the_layer(grid, options):
    with pytest.raises(ValueError, match=r"^conv\.weight: grid must"):
        only(nn.Conv1d(1, 1, 3, **options), conv="operator", grids={"conv": grid})


def test_a_grid_for_no_convolution_is_refused():
    with pytest.raises(ValueError, match="grids must name convolutions of the model"):
        only(nn.Conv1d(1, 1, 3), conv="operator", grids={"cnov": (4,)})


def test_an_unknown_way_to_see_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"conv must be 'reshape' or 'operator', got 'exact'"):
        only(nn.Conv1d(1, 1, 3), conv="exact")
