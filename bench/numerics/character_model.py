"""A real training small enough for a float64 SVD of every weight at every step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, CONTEXT, BATCH, VOCABULARY = 96, 4, 2, 64, 8, 128
OPTIMIZERS = ("AdamW", "Muon-like")
ADAMW_LR, MUON_LR, WARM_UP = 3e-3, 0.02, 20  # learning rates; steps until they are reached


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class CharacterModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.place = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens) + self.place)))
        return logits


class MuonLike(torch.optim.Optimizer):
    """Momentum with an orthogonalised update for the hidden matrices; AdamW has the rest."""

    def __init__(self, matrices: Sequence[nn.Parameter], rest: Sequence[nn.Parameter]) -> None:
        super().__init__(matrices, {"lr": MUON_LR})
        self.rest = torch.optim.AdamW(rest, lr=ADAMW_LR)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for w in self.param_groups[0]["params"]:
            momentum = self.state[w].setdefault("momentum", torch.zeros_like(w))
            momentum.mul_(0.95).add_(w.grad)
            x = w.grad + 0.95 * momentum
            x = x / (x.norm() + 1e-7)
            x = x.mT if x.shape[0] > x.shape[1] else x
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            x = x if x.shape == w.shape else x.mT
            lr = self.param_groups[0]["lr"]
            w.sub_(x, alpha=lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5)
        self.rest.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)


def warm_up(optimizer: torch.optim.Optimizer, step: int) -> None:
    for part in (optimizer, getattr(optimizer, "rest", optimizer)):
        peak = MUON_LR if isinstance(part, MuonLike) else ADAMW_LR
        part.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARM_UP)


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=ADAMW_LR)
    hidden = [p for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not w for w in hidden)]
    return MuonLike(hidden, rest)


def minibatches(seed: int) -> Iterator[Tensor]:
    folder = Path(random.__file__).parent
    text = "".join((folder / f"{name}.py").read_text("utf-8") for name in ("random", "argparse"))
    tokens = torch.tensor([min(ord(c), VOCABULARY - 1) for c in text])
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH, 1), generator=generator)
        yield tokens[starts + torch.arange(CONTEXT + 1)]
