"""Convolutions held as maps on inputs of the size that the training has."""

from __future__ import annotations

import pytest
import torch
from spectra import norm
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.layers import watch_grids


def explicit(module: nn.Module, size: int) -> Tensor:
    """Return the matrix of a convolution on size x size inputs, float64."""
    kernel = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    image = torch.eye(module.in_channels * size * size, dtype=torch.float64)
    image = image.view(-1, module.in_channels, size, size)
    with torch.no_grad():
        found = torch.func.functional_call(
            module, {k: p.double() for k, p in module.named_parameters()}, image
        )
    assert torch.equal(kernel, nn.utils.parameters_to_vector(module.parameters()))
    return found.flatten(1).T


def positive(module: nn.Module) -> nn.Module:
    module.weight.data.abs_()  # its norm grows most with the size
    return module


KINDS = {
    "7x7": lambda: nn.Conv2d(1, 2, 7, padding=3, bias=False),
    "dilation": lambda: nn.Conv2d(1, 2, 3, padding=4, dilation=4, bias=False),
    "stride": lambda: nn.Conv2d(1, 3, 5, stride=2, padding=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(2, 1, 5, padding=2, bias=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_is_held_at_the_size_that_was_given(kind: str) -> None:
    torch.manual_seed(0)
    size = 24
    model = nn.Sequential(positive(KINDS[kind]()))
    with watch_grids(model, most=size) as grids:
        model(torch.randn(1, model[0].in_channels, size, size))
    assert grids == {"0": (size, size)}
    options = {"threshold": 1.0, "conv": "operator"}
    with SNCallback(model, grids=grids, **options) as callback:
        for _ in range(12):
            callback.step()
        assert norm(explicit(model[0], size)) <= 1.001
        assert "24x24" in callback.layers.layers[0].note
    with SNCallback(model, **options) as smaller:
        smaller.step()
    assert smaller.latest["0.weight"]["sigma"] < 0.99, "without the size the norm is another one"


def test_grids_must_name_convolutions_and_follow_a_model_that_loses_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="grids must name convolutions of the model, got 'x'"):
        SNCallback(model, conv="operator", grids={"x": (8, 8)})
    with SNCallback(model, conv="operator", grids={"0": (20, 20), "1": (9, 9)}) as callback:
        model[1] = nn.Identity()
        found = callback.rescan()
        assert [layer.name for layer in found.layers] == ["0.weight"]
        assert "20x20" in found.layers[0].note
