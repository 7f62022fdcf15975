"""A character transformer under a hot learning rate: attention logits that grow."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Column, Study
from torch import Tensor, nn
from variants import (
    NONE,
    TORCH,
    Variant,
    adam,
    clipping,
    decays,
    descend,
    held,
    largest_sigma,
    other,
    ours,
    prepared,
)

from snc_client.demo.model import Block, CharTransformer
from snc_client.demo.text import VOCABULARY, encode, minibatches, standard_library_text

BATCH, CONTEXT, WIDTH, HEADS, DEPTH = 16, 32, 64, 4, 2
LOGITS = "blocks.*:logits"
QK_NORM = "QK-norm"
RATES = {"AdamW": 3e-2, "Muon": 0.3}  # hot: several times the usual 1e-3 to 3e-3, and 0.02
LAST = 20  # losses that are averaged at the end
DIVERGED = 3.3  # nats: above the 3.14 that the frequencies of characters alone give


def logits(limit: float) -> Variant:
    """Hold sigma of Wq' Wk / sqrt(size) of each head; for inputs of norm 8, a logit is 64 times."""
    return replace(ours(limit), name=f"logits, rescale {limit}", extra=LOGITS)


VARIANTS = (
    NONE,
    TORCH,
    ours("1.5x init"),
    ours("3x init"),
    ours("6x init"),
    logits(0.5),
    logits(1.0),
    *other(QK_NORM),
    *decays(0.1, 1.0, 3.0),
    *clipping(0.1, 0.3, 1.0),
)


class NormedProjection(nn.Module):
    """A projection whose result has a root mean square of 1 in each head."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection
        self.gain = nn.Parameter(torch.ones(WIDTH // HEADS))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.projection(x).unflatten(-1, (HEADS, -1))
        return (F.rms_norm(heads, heads.shape[-1:]) * self.gain).flatten(-2)


class Both:
    """Muon for the matrices of the blocks, AdamW for everything else."""

    def __init__(self, model: nn.Module, variant: Variant, lr: float) -> None:
        matrices = [p for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2]
        rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=variant.decay),
            torch.optim.AdamW(rest, lr=3e-3, weight_decay=variant.decay),
        ]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


@cache
def text() -> Tensor:
    return encode(standard_library_text(300_000))


class Language:
    """The transformer of ``snc demo``, narrower; query and key are held."""

    def __init__(self, optimizer: str, variant: Variant, seed: int) -> None:
        self.variant = variant
        model = CharTransformer(VOCABULARY, CONTEXT, WIDTH, HEADS, DEPTH)
        for name in ("query", "key"):
            prepared(model, variant, only=name)
        if variant.extra == QK_NORM:
            for block in model.blocks:
                block.query = NormedProjection(block.query)
                block.key = NormedProjection(block.key)
        self.model = model
        make = adam if optimizer == "AdamW" else Both
        self.optimizer = make(model, variant, RATES[optimizer])
        self.callback = self._held()
        self.batches = minibatches(text(), batch_size=BATCH, context=CONTEXT, seed=seed)
        self.losses: list[float] = []

    def _held(self) -> Any:
        pattern, more = "blocks.*.[qk]*y.weight", {}
        if self.variant.extra == LOGITS:
            pattern, more = LOGITS, {"logits": {"blocks.*": HEADS}}
        return held(
            self.model,
            getattr(self.optimizer, "parts", self.optimizer),
            self.variant,
            pattern,
            **more,
        )

    def step(self) -> None:
        inputs, targets = next(self.batches)
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        self.losses.append(float(loss.detach()))
        if math.isfinite(self.losses[-1]):
            descend(self.model, self.optimizer, loss, self.variant)

    def sigma(self) -> float:
        return max(largest_sigma(self.model, "query"), largest_sigma(self.model, "key"))

    def results(self) -> dict[str, float]:
        last = self.losses[-LAST:]
        end = sum(last) / len(last)
        return {
            "diverged": float(not end < DIVERGED),
            "loss": end if math.isfinite(end) else math.inf,
            "logit": self._largest_logit(),
            "sigma": self.sigma(),
        }

    @torch.no_grad()
    def _largest_logit(self) -> float:
        """Return the largest attention logit on one batch, in absolute value."""
        inputs, _ = next(self.batches)
        seen: list[float] = []

        def look(block: Block, given: tuple[Tensor, ...]) -> None:
            x = block.attention_norm(given[0])
            q, k = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                    for p in (block.query, block.key))  # fmt: skip
            seen.append(float((q @ k.mT).abs().max()) / math.sqrt(WIDTH // HEADS))

        hooks = [block.register_forward_pre_hook(look) for block in self.model.blocks]
        self.model(inputs)
        for hook in hooks:
            hook.remove()
        return max(seen)


COLUMNS = (
    Column("diverged", "diverged", share=True),
    Column("loss", "loss at the end"),
    Column("logit", "largest logit", 0),
    Column("sigma", "sigma of q, k", 1),
)


def study(optimizer: str) -> Study:
    title = f"Transformer, {optimizer} at {RATES[optimizer]:g}"
    begin = partial(Language, optimizer)
    drawn = ("loss", "logit")
    return Study(f"transformer-{optimizer}", title, VARIANTS, 1_000, begin, COLUMNS, drawn)


STUDIES = (study("AdamW"), study("Muon"))
