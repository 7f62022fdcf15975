"""Attentions of known classes: their logits are found without a word, and held by their name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from weights import spectral_norm

from snc_client import SNCallback
from snc_client.layers import find_layers

WIDTH, HEADS = 12, 3
SIZE = WIDTH // HEADS


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is inputs x outputs."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))


def attention(library: str, name: str, **children: nn.Module) -> nn.Module:
    """Return a module of a class of this name, of another library."""
    module = type(name, (nn.Module,), {"__module__": f"{library}.x"})()
    for key, child in children.items():
        setattr(module, key, child)
    return module


def gpt2() -> tuple[nn.Module, Tensor, Tensor]:
    module = attention("transformers", "GPT2Attention", c_attn=Conv1D(3 * WIDTH, WIDTH))
    module.num_heads, module.is_cross_attention = HEADS, False
    weight = module.c_attn.weight.data.t()
    return module, weight[:WIDTH], weight[WIDTH : 2 * WIDTH]


def bert() -> tuple[nn.Module, Tensor, Tensor]:
    q, k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    module = attention("transformers", "BertSelfAttention", query=q, key=k)
    module.num_attention_heads = HEADS
    return module, q.weight.data, k.weight.data


def of_torch() -> tuple[nn.Module, Tensor, Tensor]:
    module = nn.MultiheadAttention(WIDTH, HEADS)
    weight = module.in_proj_weight.data
    return module, weight[:WIDTH], weight[WIDTH : 2 * WIDTH]


def of_other_widths() -> tuple[nn.Module, Tensor, Tensor]:
    module = nn.MultiheadAttention(WIDTH, HEADS, kdim=5, vdim=7)
    return module, module.q_proj_weight.data, module.k_proj_weight.data


def products(q: Tensor, k: Tensor) -> list[float]:
    pairs = zip(q.double().split(SIZE), k.double().split(SIZE), strict=True)
    return [spectral_norm(a.T @ b / math.sqrt(SIZE)) for a, b in pairs]


KNOWN = {"gpt2": gpt2, "bert": bert, "torch": of_torch, "other widths": of_other_widths}


@pytest.mark.parametrize("name", KNOWN)
def test_a_threshold_of_the_logits_finds_and_holds_every_head(name: str) -> None:
    torch.manual_seed(0)
    module, q, k = KNOWN[name]()
    model = nn.ModuleDict({"attn": module, "fc": nn.Linear(3, 3)})
    before = products(q, k)
    limit = 0.8 * min(before)
    callback = SNCallback(model, threshold={"*attn:logits": limit}, strict=True)
    found = [x for x in callback.layers.layers if x.kind == "logits"]
    assert [x.name for x in found] == [f"attn[qk{h}]" for h in range(HEADS)]
    assert "tied" not in str(callback.layers)
    callback.step()
    callback.close()
    assert [callback.latest[x.name]["sigma"] for x in found] == pytest.approx(before, rel=1e-4)
    for after in products(q, k):  # q and k are views of the model's memory
        assert 0.99 * limit <= after <= limit * (1 + 1e-6)


def test_a_head_has_the_logits_that_the_attention_of_torch_computes() -> None:
    torch.manual_seed(0)
    module, q, k = of_torch()
    x = torch.randn(5, WIDTH)
    with torch.no_grad():
        module.in_proj_bias.zero_()
        _, weights = module(x, x, x, average_attn_weights=False)
    logits = torch.stack([
        x @ a.T @ b @ x.T / math.sqrt(SIZE)
        for a, b in zip(q.split(SIZE), k.split(SIZE), strict=True)
    ])  # fmt: skip
    assert torch.allclose(weights, logits.softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"q_norm": nn.LayerNorm(SIZE)},
        {"rotary_emb": nn.Module()},
        {"position_embedding_type": "relative_key"},
        {"scaling": 1.0},
    ],
)
def test_what_changes_q_or_k_in_between_is_not_known(change: dict[str, object]) -> None:
    module, _, _ = bert()
    for name, value in change.items():
        setattr(module, name, value)
    model = nn.ModuleDict({"attn": module})
    with pytest.raises(ValueError, match="no attention of a known class"):
        find_layers(model, logits="auto")


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(ValueError, match="logits must be a mapping or 'auto'"):
        find_layers(nn.Linear(3, 3), logits="all")  # type: ignore[arg-type]
