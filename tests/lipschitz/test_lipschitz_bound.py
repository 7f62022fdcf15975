"""Bounds of networks are never below a gradient, and are refused where no rule is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import lipschitz_bound

Function = Callable[[Tensor], Tensor]


class Of(nn.Module):
    """A module whose forward pass is a function of the input and of one weight."""

    def __init__(self, function: Callable[..., Tensor], *size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(size or (6, 6), generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def steepest(module: nn.Module, shape: tuple[int, ...], points: int = 40) -> float:
    """Return the largest norm of the Jacobian at some random points, in float64."""
    generator = torch.Generator().manual_seed(5)
    found = 0.0
    for i in range(points):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (i % 4 - 2)
        jacobian = torch.autograd.functional.jacobian(module, x).reshape(-1, x.numel())
        found = max(found, float(torch.linalg.matrix_norm(jacobian, ord=2)))
    return found


def made(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*layers).double().eval()


class GroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def trained_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(8, 3, 4, 4) * torch.tensor([0.3, 1.0, 5.0]).reshape(1, 3, 1, 1))
    nn.init.normal_(norm.weight)
    return norm


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(1)
    conv, up = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(3, 2, 3, stride=2)
    norm = nn.utils.parametrizations.weight_norm
    tied = nn.Linear(6, 6)
    return {
        "relu": (made(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), (2, 6)),
        "in place": (made(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)), (2, 6)),
        "gelu": (made(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6), nn.SiLU()), (2, 6)),
        "rows": (made(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), (2, 3, 6)),
        "residual": (made(Residual(made(nn.Linear(6, 9), nn.ELU(), nn.Linear(9, 6)))), (2, 6)),
        "group sort": (made(nn.Linear(6, 8), GroupSort(), nn.Linear(8, 4)), (2, 6)),
        "convolution": (made(conv, trained_norm(), nn.ReLU(), nn.Flatten()), (2, 2, 6, 6)),
        "transposed": (made(nn.Conv2d(2, 3, 3), nn.SiLU(), up), (1, 2, 5, 5)),
        "grouped": (made(nn.Conv1d(4, 6, 3, groups=2, dilation=2)), (2, 4, 9)),
        "reflected": (made(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), (1, 2, 5, 5)),
        "pools": (made(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1)), (1, 2, 7, 7)),
        "pools alone": (made(nn.MaxPool2d(3, 1, dilation=2)), (1, 1, 8, 8)),
        "adaptive": (made(nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2)), (1, 2, 7, 7)),
        "dropout": (made(nn.Linear(6, 6), nn.Dropout(0.5), nn.Softmax(dim=1)), (2, 6)),
        "weight norm": (made(norm(nn.Linear(6, 6)), nn.Softplus(), nn.Linear(6, 2)), (2, 6)),
        "tied": (made(tied, nn.LeakyReLU(0.2), tied), (2, 6)),
        "prelu": (made(nn.Linear(6, 6), nn.PReLU(6, init=1.7), nn.Mish()), (2, 6)),
        "cat": (Of(lambda x, w: torch.cat([x @ w, F.relu(x), x], 1)), (2, 6)),
        "functional": (Of(lambda x, w: F.linear(x, w).mul_(3).add_(x, alpha=-2)), (2, 6)),
        "broadcast": (Of(lambda x, w: x.unsqueeze(1) + x.unsqueeze(2) * 0.5), (2, 6)),
        "expanded": (Of(lambda x, w: x.unsqueeze(0).expand(4, -1, -1) * w[0]), (2, 6)),
        "view written": (Of(lambda x, w: _view_written(x)), (2, 6)),
        "centred": (Of(lambda x, w: (x - x.mean(1, keepdim=True)) / w[0, 0].abs()), (2, 6)),
        "largest": (Of(lambda x, w: torch.maximum(x @ w, x).amax(1)), (2, 6)),
        "product": (Of(lambda x, w: torch.einsum("bi,ij,kj->bk", x, w, w)), (2, 6)),
        "chosen": (Of(lambda x, w: torch.where(w[:2] > 0, x, 3 * x).sum(0)), (2, 6)),
    }


def _view_written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :3].mul_(5)
    return y.relu_()


@pytest.mark.parametrize("name", networks())
def test_no_gradient_is_steeper_than_the_bound(name: str) -> None:
    module, shape = networks()[name]
    found = lipschitz_bound(module, torch.zeros(shape, dtype=torch.float64))
    assert found.certified, str(found)
    assert not found.refused
    assert steepest(module, shape) <= found.bound <= found.product


LINEAR = ["functional", "broadcast", "expanded", "view written", "centred", "pools alone"]


@pytest.mark.parametrize("name", ["dropout", "grouped", "product", "tied", "weight norm", *LINEAR])
def test_the_bound_is_of_the_size_of_the_gradients(name: str) -> None:
    module, shape = networks()[name]
    found = lipschitz_bound(module, torch.zeros(shape, dtype=torch.float64))
    assert found.bound <= 4 * steepest(module, shape)


def test_a_single_layer_has_its_spectral_norm() -> None:
    layer = nn.Linear(30, 20)
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), ord=2))
    found = lipschitz_bound(layer, torch.zeros(5, 30))
    assert norm <= found.bound <= norm * (1 + 1e-6)
    assert [(x.module, x.operation) for x in found.used] == [("", "addmm")]


REFUSED: dict[str, Function] = {
    "square": lambda x, w: x * x,
    "power": lambda x, w: x**2,
    "quotient": lambda x, w: x / x.abs().sum(),
    "norm": lambda x, w: x / x.norm(),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, x, x),
    "softmax product": lambda x, w: torch.softmax(x @ x.T, -1) @ x,
    "noise": lambda x, w: x * torch.rand_like(x),
    "dropped": lambda x, w: F.dropout(x, 0.5, training=True),
    "gather": lambda x, w: x[x.argmax(0)],
    "step": lambda x, w: torch.where(x > 0, 1.0 + 2 * x, x),
    "rounded": lambda x, w: torch.round(x),
    "narrowed": lambda x, w: x.half().double(),
    "bits": lambda x, w: x.view(torch.int64).view(torch.float64),
    "complex": lambda x, w: torch.fft.fft(x).real,
    "weight from input": lambda x, w: F.linear(x, w * x.sum()),
    "kernel from input": lambda x, w: F.conv1d(w[None], x[None, :, :3].transpose(1, 2)),
    "gain from input": lambda x, w: F.batch_norm(x, x[0].detach(), x[0].abs(), w[0], w[0]),
    "leap": lambda x, w: F.softplus(x, threshold=1),
    "strides": lambda x, w: x.as_strided((6, 6), (0, 1)),
    "exponential": lambda x, w: x.exp(),
    "index": lambda x, w: w[:2].scatter(1, (x > 0).long(), x),
    "layer norm": lambda x, w: F.layer_norm(x, (6,)),
    "rms norm": lambda x, w: F.rms_norm(x, (6,)),
    "batch statistics": lambda x, w: F.batch_norm(x, w[0], w[1].abs(), training=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_and_named(name: str) -> None:
    found = lipschitz_bound(Of(REFUSED[name]), torch.ones(2, 6, dtype=torch.float64))
    assert math.isinf(found.bound)
    assert found.refused
    assert all(x.reason for x in found.refused)


READING: dict[str, Function] = {
    "branch": lambda x, w: x if float(x.sum()) > 0 else 100 * x,
    "branch on a tensor": lambda x, w: x if (x > 0).all() else 100 * x,
    "numpy": lambda x, w: x * torch.from_numpy(x.detach().numpy().copy()),
    "array": lambda x, w: x * float(np.asarray(x.detach())[0, 0]),
    "item": lambda x, w: x * x[0, 0].item(),
    "list": lambda x, w: torch.tensor(x.tolist()) * x,
    "bytes": lambda x, w: x * x.untyped_storage()[3],
}


@pytest.mark.parametrize("name", READING)
def test_what_depends_on_values_is_not_recorded_for_one_input(name: str) -> None:
    found = lipschitz_bound(Of(READING[name]), torch.ones(2, 6, dtype=torch.float64))
    assert math.isinf(found.bound)
    assert "cannot be traced" in found.refused[0].reason or name == "item"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.square().sum()) > 0 else x


def test_a_sequential_is_bounded_child_by_child_where_one_cannot_be_traced() -> None:
    found = lipschitz_bound(nn.Sequential(nn.Linear(6, 4), Branching()), torch.ones(2, 6))
    assert found.how == "sequential"
    assert math.isinf(found.bound)
    assert [x.module for x in found.refused] == ["1"]
    assert {x.start for x in found.parts} == {"0.input", "1.inner.input"}


def test_a_module_that_cannot_be_traced_has_bounds_of_its_children() -> None:
    found = lipschitz_bound(Branching(), torch.ones(2, 4))
    assert (found.how, [x.start for x in found.parts]) == ("modules", ["inner.input"])


def test_tied_weights_stay_the_ones_of_the_module() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    module = nn.Sequential(first, nn.ReLU(), first, nn.ReLU(), second)
    before = dict(module.named_parameters(remove_duplicate=False))
    found = lipschitz_bound(module, torch.ones(2, 4))
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in before)
    norm = float(torch.linalg.matrix_norm(first.weight.detach().double(), ord=2))
    assert found.product == pytest.approx(norm**3, rel=1e-5)


def test_a_forward_pass_that_writes_its_weights_writes_none_here() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(2)
                self.calls.add_(1)
            return x * self.weight + self.calls

    module = Growing()
    assert lipschitz_bound(module, torch.ones(2, 3)).refused
    assert module.weight.tolist() == module.calls.tolist() == [1, 1, 1]


def test_networks_between_refused_layers_have_their_own_bounds() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.ReLU())
    found = lipschitz_bound(module, torch.ones(2, 6))
    norms = [
        float(torch.linalg.matrix_norm(module[i].weight.detach().double(), ord=2)) for i in (0, 2)
    ]
    assert [(x.start, x.end) for x in found.parts] == [("input", "1"), ("1", "output")]
    assert [x.bound for x in found.parts] == pytest.approx(norms, rel=1e-5)
    assert found.refused[0].module == "1"
    assert "LayerNorm" in found.refused[0].operation


def test_layers_in_training_mode_are_refused_where_that_matters() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    assert [x.module for x in lipschitz_bound(module, torch.ones(2, 6)).refused] == ["1", "2"]
    before = module[1].running_mean.clone()
    assert lipschitz_bound(module.eval(), torch.ones(2, 6)).certified
    assert torch.equal(module[1].running_mean, before)


def test_nothing_stays_in_the_module() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    lipschitz_bound(module, torch.ones(2, 6))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in module.modules())


def test_several_inputs_are_moved_together() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return 3 * a + 4 * b

    found = lipschitz_bound(Two(), (torch.ones(2), torch.ones(2)))
    assert found.bound == pytest.approx(5.0)
    assert found.bound >= 5.0


def test_weights_that_are_not_finite_have_no_finite_bound() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    assert math.isinf(lipschitz_bound(layer, torch.ones(1, 4)).bound)


def test_a_certified_radius_keeps_the_class() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    found = lipschitz_bound(module, x)
    logits = module(x)
    radius = found.certified_radius(logits)
    direction = torch.randn(200, 50, 6, dtype=torch.float64)
    moved = x + radius[:, None] * direction / direction.norm(dim=-1, keepdim=True)
    assert (module(moved).argmax(-1) == logits.argmax(-1)).all()
    margin = logits.topk(2).values
    assert radius.tolist() == pytest.approx(
        ((margin[:, 0] - margin[:, 1]) / (math.sqrt(2) * found.bound)).tolist()
    )
    assert found.certified_radius(torch.tensor([[math.nan, 1.0], [2.0, 2.0]])).tolist() == [0, 0]


@pytest.mark.parametrize("example", [(), [], ["x"], torch.zeros(0, 3)])
def test_an_example_must_be_a_tensor_with_entries(example: object) -> None:
    with pytest.raises(ValueError, match="example_input must be"):
        lipschitz_bound(nn.Linear(3, 3), example)  # type: ignore[arg-type]
