"""What holding costs, beside a bare step and torch's parametrization: every layer is active.

    OMP_NUM_THREADS=1 python bench/numerics/action_cost.py [WIDTH,TOKENS,DEPTH,ROUNDS ...]

A GPT-like model whose Linears all start at sigma = 1, the threshold, trained with AdamW at 1e-3:
every layer is measured and every action acts at each step. All variants have models of their own
from one seed, and each round takes one step of each in a shuffled order. Medians of CPU time on
one thread, over the bare step; the first five rounds are not counted.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import random
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import SNCallback

CONTEXT, VOCABULARY, HEADS, START = 128, 256, 4, 5
SIZES = ("64,1024,4,60", "256,1024,4,30", "768,512,2,10")
ACTIONS = {
    "rescale": {"action": "rescale"},
    "strict": {"action": "rescale", "strict": True},
    "cap": {"action": "cap"},
    "normalize": {"action": "normalize"},
}
TORCH = "torch spectral_norm"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens)))


class Variant:
    """A model, its optimizer, perhaps a callback; the seconds of its steps."""

    def __init__(self, name: str, model: Model) -> None:
        self.model, self.callback = model, None
        self.seconds: list[float] = []
        if name == TORCH:
            for module in list(model.modules()):
                if isinstance(module, nn.Linear):
                    nn.utils.parametrizations.spectral_norm(module)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if name in ACTIONS:
            threshold = {"embedding.*": None, "*": 1.0}
            self.callback = SNCallback(model, threshold=threshold, **ACTIONS[name])

    def step(self, tokens: Tensor) -> None:
        start = time.process_time()
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.callback is not None:
            self.callback.step(loss=loss)
        self.seconds.append(time.process_time() - start)


def run(width: int, tokens: int, depth: int, rounds: int) -> None:
    torch.manual_seed(0)
    first = Model(width, depth)
    with torch.no_grad():
        for module in first.modules():
            if isinstance(module, nn.Linear):
                module.weight.div_(torch.linalg.matrix_norm(module.weight, 2))
    names = ["bare", *ACTIONS, TORCH]
    variants = {name: Variant(name, copy.deepcopy(first)) for name in names}
    for _ in range(START + rounds):
        data = torch.randint(0, VOCABULARY, (max(1, tokens // CONTEXT), CONTEXT + 1))
        for name in random.sample(names, len(names)):
            variants[name].step(data)
    medians = {name: statistics.median(v.seconds[START:]) for name, v in variants.items()}
    bare = medians["bare"]
    over = {name: seconds / bare for name, seconds in medians.items()}
    print(f"width {width}, {tokens} tokens, {depth} blocks, {rounds} rounds, ", end="")
    print(
        f"bare {1e3 * bare:.0f} ms:",
        ", ".join(f"{name} {value:.3f}" for name, value in over.items()),
    )
    print(f"  rescale / torch {over['rescale'] / over[TORCH]:.2f} (target 1.0), "
          f"strict over bare {over['strict']:.2f} (target 1.25), "
          f"cap / rescale {over['cap'] / over['rescale']:.2f} (target 1.5)",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    given = parser.parse_args()
    logging.getLogger("snc").setLevel(logging.ERROR)
    random.seed(0)
    print(f"python bench/numerics/action_cost.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work", flush=True)
    for size in given.sizes:
        run(*map(int, size.split(",")))


if __name__ == "__main__":
    main()
