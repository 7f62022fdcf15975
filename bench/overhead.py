"""What SNCallback costs, as % of a bare training step, beside what else could watch the weights.

    OMP_NUM_THREADS=1 python bench/overhead.py [--rounds 40]

One run, interleaved: every variant has its own model from the same seed, and each round takes one
step of each, in a shuffled order, so that a busy machine slows all of them alike. CPU time of the
whole process on one thread. "over bare" is the median over rounds of (variant - bare) in the same
round, as % of the bare median; its quartiles show the noise, and so does a second bare variant.
"sigma alone" reports no norms of weights and gradients, as torch's parametrization reports none.
"after the step" is the part that runs behind optimizer.step(), by itself. `max_overhead` is judged
afterwards, in a loop of its own: it goes by the time between its steps, which here are others'.
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
SETTLE = 40  # steps in which max_overhead finds its interval


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
        "SNCallback, rescale, sigma alone": with_callback(
            model(), signals=("loss",), threshold="1.1x init"
        ),
        "SNCallback, observe": with_callback(model()),
        "SNCallback, observe, every=10": with_callback(model(), every=10),
        "SNCallback, rescale at 1.1x init": with_callback(model(), threshold="1.1x init"),
        "SNCallback, strict at 3x init": with_callback(model(), threshold="3x init", strict=True),
        "SNCallback, strict at 1.1x init": with_callback(
            model(), threshold="1.1x init", strict=True
        ),
        "torch parametrizations.spectral_norm": with_parametrization(model()),
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
    bare = made["bare"].seconds
    print(f"\n{rounds} rounds; CPU time a step")
    print(f"{'variant':38}{'median':>10}{'over bare (quartiles)':>27}{'after the step':>16}")
    for name, variant in made.items():
        over = [
            100 * (x - b) / statistics.median(bare)
            for x, b in zip(variant.seconds, bare, strict=True)
        ]
        low, middle, high = statistics.quantiles(over, n=4)
        print(
            f"{name:38}{1e3 * statistics.median(variant.seconds):7.1f} ms"
            f"{middle:+9.2f} % ({low:+6.2f}, {high:+6.2f})"
            f"{1e3 * statistics.median(variant.after_seconds):13.2f} ms"
        )
    name, share = "SNCallback, observe, max_overhead=1 %", 0.01
    torch.manual_seed(0)
    alone = with_callback(Transformer(), max_overhead=share)
    for i in range(SETTLE + rounds):
        alone.step(tokens, timed=i >= SETTLE)
    after = statistics.mean(alone.after_seconds)
    print(
        f"\n{name}, alone, after {SETTLE} steps: mean {1e3 * after:.2f} ms after the step, ", end=""
    )
    print(f"{100 * after / statistics.mean(alone.seconds):.2f} % of its step")


if __name__ == "__main__":
    main()
