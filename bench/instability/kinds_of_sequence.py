"""Trainings on text: a modern decoder, a mixture of experts, a recurrent net, low-rank adapters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from faults import Fault
from tasks import CONTEXT, WIDTH, Task, text
from torch import Tensor, nn

from snc_client.demo.text import VOCABULARY, minibatches

HEADS = 2


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Four experts, of which each token uses one; the last is routed to only if its logit wins."""

    def __init__(self, idle: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(Gated() for _ in range(4))
        self.shift = torch.tensor([0.0, 0.0, 0.0, -6.0 if idle else 0.0])

    def forward(self, x: Tensor) -> Tensor:
        share = (self.router(x) + self.shift).softmax(-1)
        best, chosen = share.max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            here = chosen == number
            if here.any():
                out[here] = expert(x[here]) * best[here].unsqueeze(-1)
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ModernBlock(nn.Module):
    def __init__(self, feed: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed = Attention(), feed

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed(self.norm_2(x))


class Decoder(nn.Module):
    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks, self.norm = blocks, nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.cell, self.head = nn.LSTM(WIDTH, 48, batch_first=True), nn.Linear(48, VOCABULARY)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


class NextCharacter(Task):
    """The next character of Python source; 8 x 32 characters a step."""

    def __init__(self, seed: int, model: nn.Module, batch: int = 8, change: int = 0) -> None:
        self.model = model
        self.data = minibatches(text(), batch_size=batch, context=CONTEXT, seed=seed)
        self.larger = minibatches(text(), batch_size=3 * batch, context=CONTEXT, seed=seed + 1)
        self.noise, self.change = torch.Generator().manual_seed(1_000 + seed), change

    def loss(self, step: int, fault: Fault) -> Tensor:
        inputs, targets = next(self.larger if 0 < self.change <= step else self.data)
        targets = fault.targets(step, targets, VOCABULARY, self.noise)
        x = fault.inputs(step, self.model.embed(inputs))
        logits = fault.logits(step, self.model(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def modern(seed: int, depth: int = 2, **options: int) -> Task:
    torch.manual_seed(seed)
    blocks = nn.Sequential(*(ModernBlock(Gated()) for _ in range(depth)))
    return NextCharacter(seed, Decoder(blocks), **options)


def experts(seed: int, idle: bool = False) -> Task:
    torch.manual_seed(seed)
    return NextCharacter(seed, Decoder(ModernBlock(Experts(idle))))


def recurrent(seed: int, **options: int) -> Task:
    torch.manual_seed(seed)
    return NextCharacter(seed, Recurrent(), **options)


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank correction, born at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + F.linear(F.linear(x, self.lora_A), self.lora_B)


def pretrained(seed: int, rows: int = 150) -> NextCharacter:
    task = modern(seed)
    assert isinstance(task, NextCharacter)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for step in range(rows):
        optimizer.zero_grad()
        task.loss(step, Fault()).backward()
        optimizer.step()
    return task


def low_rank(seed: int) -> Task:
    task = pretrained(seed)
    task.model.requires_grad_(False)
    for block in task.model.blocks:
        block.attention.qkv = Adapted(block.attention.qkv)
        block.attention.out = Adapted(block.attention.out)
        block.feed.up, block.feed.down = Adapted(block.feed.up), Adapted(block.feed.down)
    return task


def new_head(seed: int) -> Task:
    """Fine-tune on another text with a head that starts anew."""
    task = pretrained(seed)
    task.model.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    task.data = minibatches(text().flip(0), batch_size=8, context=CONTEXT, seed=seed)
    return task
