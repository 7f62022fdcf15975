"""Strict holds convolutions as maps, at the size of their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snc_client import SNCallback, measure
from snc_client.bounds import last_bound, per_frobenius
from snc_client.layers import find_layers

SHAPE = (2, 9, 9)


def network(mode: str = "zeros") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Flatten(), nn.Linear(722, 3),
    )  # fmt: skip


def explicit(layer: nn.Module, shape: tuple[int, ...]) -> float:
    size = torch.Size(shape).numel()
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    plain = type(layer).forward.__get__(layer)
    weight, bias = layer.weight.data, layer.bias.data
    layer.weight.data, layer.bias.data = weight.double(), torch.zeros_like(bias).double()
    with torch.no_grad():
        matrix: Tensor = plain(basis).flatten(1)
    layer.weight.data, layer.bias.data = weight, bias
    return float(torch.linalg.matrix_norm(matrix, ord=2))


@pytest.mark.parametrize(("mode", "least"), [("zeros", 0.75), ("reflect", 0.5)])
def test_the_map_at_the_size_of_the_example_never_exceeds_its_threshold(
    mode: str, least: float
) -> None:
    model = network(mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    limit = {"0.weight": 0.9, "3.weight": 0.8, "*": 5.0}
    callback = SNCallback(
        model, optimizer=optimizer, strict=True, threshold=limit, conv="operator",
        example_input=torch.randn(1, *SHAPE),
    )  # fmt: skip
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, *SHAPE)).square().mean().neg().backward()
        optimizer.step()
        assert explicit(model[0], SHAPE) <= 0.9 * (1 + 1e-6)
        assert explicit(model[3], (4, 9, 9)) <= 0.8 * (1 + 1e-6)
    callback.close()
    assert callback.errors == 0
    assert explicit(model[0], SHAPE) >= least  # it is held, and not shrunk away


def test_one_forward_pass_finds_the_sizes_and_leaves_nothing() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    found = measure(model, conv="operator", example_input=torch.randn(1, *SHAPE))
    assert torch.equal(torch.randn(1, *SHAPE), _next(state, torch.randn, (1, *SHAPE)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(x._forward_pre_hooks for x in model.modules())
    assert found["0.weight"].sigma == pytest.approx(explicit(model[0], SHAPE), rel=1e-3)
    assert found["3.weight"].sigma == pytest.approx(explicit(model[3], (4, 9, 9)), rel=1e-3)


def _next(state: Tensor, draw: object, shape: tuple[int, ...]) -> Tensor:
    """Return what the second draw from ``state`` gives: the first was the example."""
    generator = torch.Generator()
    generator.set_state(state)
    torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_last_bound_of_a_convolution_is_one(mode: str, stride: int) -> None:
    torch.manual_seed(1)
    for _ in range(10):
        layer = nn.Conv2d(2, 3, 3, stride, 1, padding_mode=mode)
        (found,) = find_layers(layer, conv="operator", grids={"": (6, 6)}).layers
        operator, true = found.operator(), explicit(layer, (2, 6, 6))
        frobenius = float(layer.weight.detach().double().norm())
        assert true <= per_frobenius(operator) * frobenius
        assert true <= float(last_bound(operator, torch.tensor(0.0)))


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="example_input must be what"):
        SNCallback(network(), conv="operator", example_input=torch.ones(1, 7, 7, 7))
    with pytest.raises(ValueError, match="example_input must be None"):
        measure(torch.ones(3, 3), example_input=torch.ones(1))
