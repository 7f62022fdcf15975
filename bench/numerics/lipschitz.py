"""`lipschitz_bound` beside the steepest gradients that an ascent finds, and convolution bounds.

    OMP_NUM_THREADS=1 python bench/numerics/lipschitz.py [--restarts N] [--rounds N] [--seed N]

Section 1: small networks, initialised or trained, in float64. 10,000 points climb at once: each
tries a random move at every round, at three scales, and keeps it where the largest singular value
of the Jacobian grows. Section 2: layers of deel-torchlip, where it is installed: what they promise
beside what is certified of their stored weights. Section 3: convolutions as maps, against the
explicit matrix. Says ``missed`` where a target was.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from importlib.util import find_spec
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import lipschitz_bound
from snc_client.bounds import convolution_bound
from snc_client.layers import find_layers

AT_ONCE = 2500


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class GroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1)


def dense(sizes: list[int], function: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(n, m), *([function()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def image(function: type[nn.Module], pool: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), function(), pool,
        nn.Conv2d(6, 6, 3, padding=1), function(), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip


def networks() -> list[tuple[str, nn.Module, tuple[int, ...], bool]]:
    """Return name, module, shape of one input, and whether to train it."""
    flat, pictures = (10,), (2, 6, 6)
    relu, gelu, tanh, leaky = nn.ReLU, nn.GELU, nn.Tanh, nn.LeakyReLU
    found = [
        (f"{function.__name__} {'-'.join(map(str, sizes))}", dense(sizes, function), flat)
        for function, sizes in (
            (relu, [10, 32, 4]), (relu, [10, 32, 32, 4]), (relu, [10, 64, 64, 64, 4]),
            (gelu, [10, 32, 32, 4]), (tanh, [10, 32, 32, 4]), (leaky, [10, 48, 48, 4]),
        )
    ]  # fmt: skip
    found += [
        ("residual ReLU", nn.Sequential(Residual(dense([10, 32, 10], relu))), flat),
        ("residual SiLU", nn.Sequential(Residual(dense([10, 32, 10], nn.SiLU))), flat),
        ("GroupSort", dense([10, 32, 32, 4], GroupSort), flat),
        ("conv, max-pool", image(relu, nn.MaxPool2d(2)), pictures),
        ("conv, GELU, average", image(gelu, nn.AvgPool2d(2)), pictures),
    ]  # fmt: skip
    every = [(f"{name}, initial", net, shape, False) for name, net, shape in found]
    again = [*found[:6], *found[8:11]]
    return every + [(f"{name}, trained", net, shape, True) for name, net, shape in again]


def train(module: nn.Module, shape: tuple[int, ...], steps: int = 300) -> None:
    """Learn the class of a random quadratic form."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(512, *shape, generator=generator, dtype=torch.float64)
    forms = torch.randn(4, x[0].numel(), x[0].numel(), generator=generator, dtype=torch.float64)
    y = torch.einsum("bi,kij,bj->bk", x.flatten(1), forms, x.flatten(1)).argmax(1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


def steepness(module: nn.Module, x: Tensor) -> Tensor:
    """Return the norm of the Jacobian at each of the points [b, ...]."""
    found = []
    for some in x.split(AT_ONCE):
        some = some.clone().requires_grad_()
        rows = module(some)
        gradients = [
            torch.autograd.grad(rows[:, i].sum(), some, retain_graph=True)[0].flatten(1)
            for i in range(rows.shape[1])
        ]
        jacobian = torch.stack(gradients, 1)
        gram = jacobian @ jacobian.mT
        found.append(torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt())
    return torch.cat(found)


def steepest(module: nn.Module, shape: tuple[int, ...], restarts: int, rounds: int) -> float:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(restarts, *shape, generator=generator, dtype=torch.float64)
    x *= torch.logspace(-1, 1, restarts, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    found = steepness(module, x)
    for i in range(rounds):
        move = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        size = x.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
        moved = x + move * size * (0.3, 0.1, 0.03)[i % 3] / len(x[0].flatten()) ** 0.5
        steeper = steepness(module, moved)
        better = steeper > found
        x[better], found = moved[better], torch.maximum(found, steeper)
    return float(found.max())


def section_1(restarts: int, rounds: int) -> None:
    print(f"1. Networks: {restarts} restarts, {rounds} rounds of ascent; bounds and gradients\n")
    print(f"   {'network':32} {'steepest':>9} {'bound':>9} {'product':>9} "
          f"{'product/bound':>13} {'bound/steepest':>14} {'s':>6}")  # fmt: skip
    gains, below = [], 0
    for name, module, shape, trained in networks():
        module = module.double()
        module(torch.randn(4, *shape, dtype=torch.float64))
        if trained:
            train(module, shape)
        module.eval()
        began = time.process_time()
        found = lipschitz_bound(module, torch.zeros(1, *shape, dtype=torch.float64))
        seconds = time.process_time() - began
        steep = steepest(module, shape, restarts, rounds)
        below += steep > found.bound
        gain = found.product / found.bound
        if any("together" in x.operation for x in found.used):
            gains.append(gain)
        print(f"   {name:32} {steep:9.4f} {found.bound:9.4f} {found.product:9.4f} {gain:13.2f} "
              f"{found.bound / steep:14.2f} {seconds:6.2f}", flush=True)  # fmt: skip
    median = statistics.median(gains)
    print(f"\n   never below a gradient: {'met' if not below else f'missed, {below} times'}")
    print(f"   tighter than the product where the inequality applies ({len(gains)} networks): "
          f"median {median:.2f}x, least {min(gains):.2f}x; target 1.3x: "
          f"{'met' if median >= 1.3 else 'missed'}\n")  # fmt: skip


def section_2(restarts: int, rounds: int) -> None:
    if find_spec("deel") is None:
        print("2. deel-torchlip is not installed: left out\n")
        return
    from deel import torchlip

    print("2. deel-torchlip: 10-32-32-4 of SpectralLinear, each promised to be 1-Lipschitz\n")
    for name, function in (("GroupSort2", torchlip.GroupSort2), ("ReLU", nn.ReLU)):
        torch.manual_seed(0)
        module = torchlip.Sequential(
            torchlip.SpectralLinear(10, 32), function(), torchlip.SpectralLinear(32, 32),
            function(), torchlip.SpectralLinear(32, 4),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        x = torch.randn(256, 10)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(10 * module(x), x[:, :4].argmax(1)).backward()
            optimizer.step()
        module.eval()
        module(x)
        plain = module.vanilla_export().double()
        found = lipschitz_bound(plain, torch.zeros(1, 10, dtype=torch.float64))
        steep = steepest(plain, (10,), restarts, rounds)
        print(f"   {name:12} promised 1, certified {found.bound:.6f} (product "
              f"{found.product:.6f}), steepest {steep:.6f}")  # fmt: skip
    print()


def section_3() -> None:
    print("3. Convolutions as maps at the size of their input: bound / norm of the explicit map\n")
    ratios: dict[str, list[float]] = {"random": [], "trained-like": [], "positive": []}
    below = 0
    for kind, found in ratios.items():
        for size, stride, dilation, groups, grid in (
            (3, 1, 1, 1, 12), (3, 2, 1, 1, 12), (5, 1, 1, 1, 12), (7, 2, 1, 1, 16),
            (3, 1, 2, 1, 12), (3, 1, 1, 4, 12), (3, 1, 1, 1, 24), (1, 1, 1, 1, 8),
        ):  # fmt: skip
            channels = 4 if grid < 20 else 2
            module = nn.Conv2d(channels, 4, size, stride, dilation * (size // 2), dilation,
                               groups if channels % groups == 0 else 1, bias=False)  # fmt: skip
            with torch.no_grad():
                if kind == "trained-like":  # a smooth part, and a few strong filters
                    bump = torch.hann_window(size + 2)[1:-1]
                    module.weight.add_(0.3 * torch.outer(bump, bump))
                    module.weight[0].mul_(3)
                elif kind == "positive":
                    module.weight.abs_()
            (layer,) = find_layers(module, conv="operator", grids={"": (grid, grid)}).layers
            bound = float(convolution_bound(layer.operator()))
            inputs = channels * grid * grid
            basis = torch.eye(inputs, dtype=torch.float64).reshape(inputs, channels, grid, grid)
            with torch.no_grad():
                matrix = module.double()(basis).flatten(1)
            true = float(torch.linalg.matrix_norm(matrix, ord=2))
            below += bound < true
            found.append(bound / true)
        print(f"   {kind:13} median {statistics.median(found):.4f}, worst {max(found):.4f}")
    every = [x for found in ratios.values() for x in found]
    median, worst = statistics.median(every), max(every)
    print(f"\n   all {len(every)}: median {median:.4f} (target 1.10), worst {worst:.4f} "
          f"(target 1.5), below {below} times (target 0): "
          f"{'met' if median <= 1.1 and worst <= 1.5 and not below else 'missed'}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(" ".join(["python", "bench/numerics/lipschitz.py", *sys.argv[1:]]))
    print(f"{platform.machine()}, {torch.get_num_threads()} thread, seed {options.seed}; Python "
          f"{platform.python_version()}, torch {torch.__version__}\n")  # fmt: skip
    torch.manual_seed(options.seed)
    section_1(options.restarts, options.rounds)
    section_2(options.restarts, options.rounds)
    section_3()


if __name__ == "__main__":
    main()
