"""What SNCallback costs, as % of a bare training step, beside what else could watch the weights.

    OMP_NUM_THREADS=1 python bench/overhead.py [--rounds 40]

One run, interleaved: every variant has its own model from the same seed, and each round takes one
step of each, in a shuffled order, so that a busy machine slows all of them alike. CPU time of the
whole process on one thread. "over bare" is the median over rounds of (variant - bare) in the same
round, as % of the bare median; its quartiles show the noise, and so does a second bare variant.
"sigma alone" reports no norms of weights and gradients, as torch's parametrization reports none.
"after the step" is the part that runs behind optimizer.step(), by itself and as % of the bare step:
steadier than the difference of two whole steps, so the targets are compared with it. What torch's
parametrization costs lies inside the step, so of that there is only the difference. `max_overhead`
is judged afterwards, in a loop of its own: it goes by the time between its steps, which here are
others'.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import SNCallback

VOCABULARY, WIDTH, HEADS, DEPTH, CONTEXT, BATCH = 256, 256, 4, 6, 128, 8
WARM_UP = 4
SETTLE = 40  # steps in which max_overhead finds its pace
EVERY_LAYER = {"idle_every": 1}
TARGETS = {  # % of a bare step, after it
    "SNCallback, observe, sigma alone": 1.0,
    "SNCallback, observe": 1.0,
    "SNCallback, observe, every layer, sigma alone": 2.5,
    "SNCallback, observe, every layer": 2.5,
}
TIMES_CHEAPER = 3.0  # than torch's parametrization
TORCH = "torch parametrizations.spectral_norm"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens)))


class Variant:
    """A model, its optimizer, and what happens after each optimizer step."""

    def __init__(self, model: nn.Module, after: Callable[[nn.Module, Tensor], None]) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.after = after
        self.seconds: list[float] = []
        self.after_seconds: list[float] = []

    def step(self, tokens: Tensor, *, timed: bool) -> None:
        start = time.process_time()
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        stepped = time.process_time()
        self.after(self.model, loss)
        if timed:
            self.seconds.append(time.process_time() - start)
            self.after_seconds.append(time.process_time() - stepped)


def nothing(model: nn.Module, loss: Tensor) -> None:
    pass


def with_callback(model: nn.Module, **keywords: object) -> Variant:
    callback = SNCallback(model, **keywords)
    return Variant(model, lambda _, loss: callback.step(loss=loss))


def with_parametrization(model: nn.Module) -> Variant:
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.utils.parametrizations.spectral_norm(module)
    return Variant(model, nothing)


def with_naive_loop(model: nn.Module) -> Variant:
    """One warm vector per matrix, one `.item()` per matrix: what people write first."""
    vectors = {name: torch.randn(w.shape[1]) for name, w in model.named_parameters() if w.ndim == 2}

    @torch.no_grad()
    def after(model: nn.Module, loss: Tensor) -> None:
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                u = F.normalize(weight @ vectors[name], dim=0)
                v = weight.T @ u
                v.norm().item()
                vectors[name] = F.normalize(v, dim=0)
        loss.item()

    return Variant(model, after)


def variants() -> dict[str, Variant]:
    torch.manual_seed(0)
    first = Transformer()

    def model() -> nn.Module:
        return copy.deepcopy(first)

    return {
        "bare": Variant(model(), nothing),
        "bare, again": Variant(model(), nothing),
        "naive loop with .item(), 1 vector": with_naive_loop(model()),
        "SNCallback, observe, sigma alone": with_callback(model(), signals=("loss",)),
        "SNCallback, observe": with_callback(model()),
        "SNCallback, observe, every layer, sigma alone": with_callback(
            model(), signals=("loss",), **EVERY_LAYER
        ),
        "SNCallback, observe, every layer": with_callback(model(), **EVERY_LAYER),
        "SNCallback, rescale at 3x init": with_callback(model(), threshold="3x init"),
        "SNCallback, rescale at 1.1x init": with_callback(model(), threshold="1.1x init"),
        "SNCallback, strict at 3x init": with_callback(model(), threshold="3x init", strict=True),
        "SNCallback, strict at 1.1x init": with_callback(
            model(), threshold="1.1x init", strict=True
        ),
        TORCH: with_parametrization(model()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    made = variants()
    matrices = sum(w.ndim == 2 for w in made["bare"].model.parameters())
    print(
        f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, ",
        end="",
    )
    print(f"torch {torch.__version__}, 1 thread, float32, AdamW")
    print(
        f"GPT-like: width {WIDTH}, {DEPTH} blocks, {matrices} matrices, "
        f"{BATCH * CONTEXT} tokens a step"
    )
    data = torch.Generator().manual_seed(1)
    shuffle = random.Random(2)
    for i in range(WARM_UP + rounds):
        tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=data)
        for name in shuffle.sample(list(made), len(made)):
            made[name].step(tokens, timed=i >= WARM_UP)
    report(made, rounds)
    name, share = "SNCallback, observe, max_overhead=1 %", 0.01
    torch.manual_seed(0)
    alone = with_callback(Transformer(), max_overhead=share)
    for i in range(SETTLE + rounds):
        alone.step(tokens, timed=i >= SETTLE)
    after = statistics.mean(alone.after_seconds)
    print(
        f"\n{name}, alone, after {SETTLE} steps: mean {1e3 * after:.2f} ms after the step, ", end=""
    )
    reached = 100 * after / statistics.mean(alone.seconds)
    print(f"{reached:.2f} % of its step{verdict(reached, 100 * share)}")


def report(made: dict[str, Variant], rounds: int) -> None:
    """Print what each variant took, beside its target where there is one."""
    bare = made["bare"].seconds
    usual = statistics.median(bare)
    print(f"\n{rounds} rounds; CPU time a step")
    print(f"{'variant':47}{'median':>8}{'over bare (quartiles)':>28}{'after the step':>18}")
    over: dict[str, float] = {}
    for name, variant in made.items():
        low, over[name], high = statistics.quantiles(
            [100 * (x - b) / usual for x, b in zip(variant.seconds, bare, strict=True)], n=4
        )
        after = statistics.median(variant.after_seconds)
        share = 100 * after / usual
        print(
            f"{name:47}{1e3 * statistics.median(variant.seconds):6.1f} ms"
            f"{over[name]:+9.2f} % ({low:+6.2f}, {high:+6.2f})"
            f"{1e3 * after:8.2f} ms {share:5.2f} %"
            f"{verdict(share, TARGETS[name]) if name in TARGETS else ''}"
        )
    for name in ("SNCallback, observe, sigma alone", "SNCallback, observe"):
        share = 100 * statistics.median(made[name].after_seconds) / usual
        times = over[TORCH] / share
        said = "met" if times >= TIMES_CHEAPER else "missed"
        print(
            f"{name}: {times:.1f} times cheaper than torch's (target {TIMES_CHEAPER:.0f}: {said})"
        )


def verdict(share: float, target: float) -> str:
    return f" (target {target:.1f} %: {'met' if share <= target else 'missed'})"


if __name__ == "__main__":
    main()
