"""Every layer at every step of 8 architectures x 3 optimizers, held by every action in strict mode.

    OMP_NUM_THREADS=1 python bench/numerics/held_everywhere.py [--steps 300] [--bf16] [--default]

In each training the layers take turns: the first is rescaled, the second capped, the third
normalized, and so on, at 1.1 times their first norms. After each step every held layer is compared
with its threshold by float64 SVD of its whole matrix (products and convolutions are multiplied
out). ``--bf16`` keeps weights in bfloat16, without masters. The largest ratio and the
share above 1 + 1e-3 are printed, by action; and for ``normalize`` the smallest ratio.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import SNCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from spectra import norm
from weights import LoraLinear

ACTIONS = ("rescale", "cap", "normalize")
OVER = 1e-3


class Head(nn.Module):
    """Reads the mean of a sequence or an image, so that all architectures have one task."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y.flatten(2).mean(-1) if y.ndim == 4 else y.mean(1) if y.ndim == 3 else y)


class Experts(nn.Module):
    """A stack of four matrices, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(24, 4)
        self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        return sum(share[..., i, None] * e(x).tanh() for i, e in enumerate(self.experts))


class Pair(LoraLinear):
    """A frozen matrix beside a trained product of two."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Tokens(nn.Module):
    """A table, then attention and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 24)
        self.block = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.table((x.float().abs() * 20).long()[..., 0].clamp(max=63)))


def architectures() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Return name -> (a function that makes the model, the shape of one input)."""
    linear, conv = nn.Linear, nn.Conv2d
    return {
        "mlp": (lambda: nn.Sequential(linear(16, 40), nn.ReLU(), linear(40, 24)), (16,)),
        "deep tanh": (
            lambda: nn.Sequential(*(m for _ in range(5) for m in (linear(24, 24), nn.Tanh()))),
            (24,),
        ),
        "convolutions": (
            lambda: nn.Sequential(
                conv(3, 12, 3), nn.ReLU(), conv(12, 24, 3, groups=3), nn.ReLU(), conv(24, 24, 1)
            ),
            (3, 8, 8),
        ),
        "transposed": (
            lambda: nn.Sequential(conv(3, 12, 2, stride=2), nn.ConvTranspose2d(12, 24, 2)),
            (3, 8, 8),
        ),
        "transformer": (Tokens, (8, 1)),
        "lstm": (lambda: nn.LSTM(8, 24, batch_first=True), (6, 8)),
        "experts": (Experts, (24,)),
        "low-rank pair": (lambda: nn.Sequential(Pair(16, 24, 4), nn.Tanh()), (16,)),
    }


class Orthogonal(torch.optim.Optimizer):
    """Momentum whose steps have equal singular values, as Muon's; plain SGD for vectors."""

    def __init__(self, parameters: object, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(0.9).add_(p.grad)
                if p.ndim < 2:
                    p.add_(m, alpha=-group["lr"])
                    continue
                u, _, vh = torch.linalg.svd(m.float().flatten(1), full_matrices=False)
                p.add_((u @ vh).view_as(p).to(p), alpha=-group["lr"])


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Muon-like": lambda p: Orthogonal(p, lr=0.02),
}


def exact(callback: SNCallback) -> Iterator[tuple[str, float]]:
    for layer in callback.layers.layers:
        if layer.writable:
            operator = layer.operator()
            yield layer.name, norm(operator.matmul(torch.eye(operator.shape[1])))


def train(name: str, optimizer: str, *, steps: int, bf16: bool, strict: bool) -> dict[str, list]:
    """Return the ratios after each step of every held layer, by action."""
    torch.manual_seed(0)
    make, shape = architectures()[name]
    body = make()
    with torch.no_grad():  # a pair starts with a zero factor
        for key, p in body.named_parameters():
            if "lora_B" in key:
                p.normal_(std=0.1)
    body = Head(body, 24)
    probe = SNCallback(body)
    layers = [layer.name for layer in probe.layers.layers if layer.writable and layer.linear]
    limits = {key: 1.1 * size for key, size in exact(probe) if key in layers}
    probe.close()
    model = body.bfloat16() if bf16 else body
    entries = [
        {"pattern": key.replace("[", "[[]"), "threshold": limits[key], "action": ACTIONS[i % 3]}
        for i, key in enumerate(layers)
    ]
    steps_of = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    found: dict[str, list] = {action: [] for action in ACTIONS}
    with SNCallback(model, policy={"entries": entries}, strict=strict, signals=()) as callback:
        in_force = zip(callback.layers.layers, callback._monitor._policies, strict=True)
        held = {layer.name: policy.action for layer, policy in in_force}
        for step in range(steps):
            x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(step))
            x = x.bfloat16() if bf16 else x
            target = torch.full((16, 8), 3.0).to(x)
            loss = F.mse_loss(model(x), target)
            steps_of.zero_grad()
            loss.backward()
            steps_of.step()
            callback.step()
            for key, size in exact(callback):
                if held.get(key) in ACTIONS:
                    found[held[key]].append(size / limits[key])
        assert callback.errors == 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--default", action="store_true", help="without strict")
    given = parser.parse_args()
    logging.getLogger("snc").setLevel(logging.ERROR)
    print(f"python bench/numerics/held_everywhere.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work")
    start = time.process_time()
    every: dict[str, list[float]] = {action: [] for action in ACTIONS}
    print(f"{'architecture':14} {'optimizer':10} {'layer-steps':>11}  largest ratio after "
          f"{' / '.join(ACTIONS)}, smallest of normalize", flush=True)  # fmt: skip
    for name in architectures():
        for optimizer in OPTIMIZERS:
            found = train(name, optimizer, steps=given.steps, bf16=given.bf16,
                          strict=not given.default)  # fmt: skip
            most = " / ".join(f"{max(x):.7f}" if x else "-" for x in found.values())
            least = min(found["normalize"], default=float("nan"))
            count = sum(map(len, found.values()))
            print(f"{name:14} {optimizer:10} {count:11d}  {most}, {least:.5f}", flush=True)
            for action, ratios in found.items():
                every[action] += ratios
    for action, ratios in every.items():
        over = sum(x > 1 + OVER for x in ratios)
        print(f"{action}: {len(ratios)} layer-steps, largest {max(ratios):.7f}, "
              f"{over} above 1 + 1e-3")  # fmt: skip
    print(f"{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
