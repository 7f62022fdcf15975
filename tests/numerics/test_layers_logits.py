"""Attention logits head by head, against the explicit product in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from weights import assert_measures, named, reasons, spectral_norm

from snc_client import SNCallback
from snc_client.bounds import bound
from snc_client.layers import find_layers


class Attention(nn.Module):
    def __init__(self, width: int, of_q: int, of_k: int, size: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, of_q * size, bias=False)
        self.k_proj = nn.Linear(width, of_k * size, bias=False)


class Block(nn.Module):
    def __init__(self, width=12, of_q=3, of_k=3, size=4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(width, of_q, of_k, size)


def product(model: Block, q: int, k: int, size: int = 4) -> torch.Tensor:
    of_q = model.attn.q_proj.weight.detach().double()[q * size : (q + 1) * size]
    of_k = model.attn.k_proj.weight.detach().double()[k * size : (k + 1) * size]
    return of_q.T @ of_k / math.sqrt(size)


def heads(model: nn.Module, given) -> list:
    return [x for x in find_layers(model, logits=given).layers if x.kind == "logits"]


def test_a_head_is_its_product_and_bounds_its_logits():
    model = Block()
    found = heads(model, {"attn": 3})
    assert [x.name for x in found] == ["attn[qk0]", "attn[qk1]", "attn[qk2]"]
    x, y = torch.randn(2, 200, 12, dtype=torch.float64)
    for h, layer in enumerate(found):
        exact = product(model, h, h)
        assert_measures(layer, exact)
        logits = torch.einsum("ni,ij,nj->n", x, exact, y) / (x.norm(dim=1) * y.norm(dim=1))
        assert float(logits.abs().max()) <= spectral_norm(exact)


def test_the_bound_of_a_product_is_above_the_truth_and_tight():
    model = Block(width=40, of_q=4, of_k=4, size=8)
    for h, layer in enumerate(heads(model, {"attn": 4})):
        exact = spectral_norm(product(model, h, h, size=8))
        for sigma in (exact, 0.5 * exact, 0.0):
            upper = float(bound(layer.operator(), torch.tensor(sigma)))
            assert exact <= upper
        assert float(bound(layer.operator(), torch.tensor(exact))) <= exact * (1 + 1.1e-3)


def test_the_product_of_the_norms_is_looser():
    model = Block(width=40, of_q=4, of_k=4, size=8)
    q, k = (w.weight.detach()[:8] for w in (model.attn.q_proj, model.attn.k_proj))
    loose = spectral_norm(q) * spectral_norm(k) / math.sqrt(8)
    assert spectral_norm(product(model, 0, 0, size=8)) < 0.9 * loose


@pytest.mark.parametrize("strict", [False, True])
def test_holding_a_head_scales_its_rows_of_q_and_k_by_the_root_and_no_others(strict):
    model = Block()
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    limit = 0.5 * spectral_norm(product(model, 1, 1))
    with SNCallback(
        model, threshold={"attn[[]qk1]": limit}, logits={"attn": 3}, strict=strict
    ) as callback:
        callback.step()
    assert 0.99 * limit <= spectral_norm(product(model, 1, 1)) <= limit * (1 + 1e-6)
    factors = []
    for name, w in model.named_parameters():
        w = w.detach()
        assert torch.equal(w[:4], before[name][:4])
        assert torch.equal(w[8:], before[name][8:])
        factors.append(float((w[4:8] / before[name][4:8]).mean()))
    assert factors[0] == pytest.approx(factors[1], rel=1e-5)
    assert factors[0] == pytest.approx(math.sqrt(0.5), rel=2e-3)


def test_the_heads_of_a_multihead_attention_are_slices_of_its_fused_weight():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)})
    weight = model["a"].in_proj_weight.detach().double()
    found = heads(model, {"a": 2})
    for h, layer in enumerate(found):
        q, k = weight[4 * h : 4 * h + 4], weight[8 + 4 * h : 12 + 4 * h]
        assert_measures(layer, q.T @ k / 2)
    keep = weight.clone()
    for factor in found[1].factors():
        factor.mul_(0.5)
    changed = (model["a"].in_proj_weight.detach().double() != keep).any(1)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_a_key_that_queries_share_is_not_scaled_by_each_of_them():
    model = Block(of_q=4, of_k=2)
    found = heads(model, {"attn": (4, 2)})
    for h, layer in enumerate(found):
        assert_measures(layer, product(model, h, h // 2))
        (only,) = layer.factors()
        assert only.data_ptr() == model.attn.q_proj.weight[4 * h :].data_ptr()


def test_a_frozen_projection_leaves_the_other_to_be_scaled():
    model = Block()
    model.attn.k_proj.requires_grad_(False)
    limit = 0.5 * spectral_norm(product(model, 0, 0))
    keep = model.attn.k_proj.weight.detach().clone()
    with SNCallback(model, threshold={"attn[[]qk*": limit}, logits={"attn": 3}) as callback:
        callback.step()
    assert torch.equal(model.attn.k_proj.weight, keep)
    assert spectral_norm(product(model, 0, 0)) <= limit
    model.attn.q_proj.requires_grad_(False)
    assert not any(x.writable for x in heads(model, {"attn": 3}))


def test_the_projections_themselves_stay_layers_and_are_counted_once():
    coverage = find_layers(Block(), logits={"*": 3})
    assert list(named(coverage))[:2] == ["attn.q_proj.weight", "attn.k_proj.weight"]
    assert coverage.measured_parameters == coverage.total_parameters
    assert reasons(coverage) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mlp": 3}, "'mlp' matches none"),
        ({"attn": 5}, "divide 12 outputs"),
        ({"attn": 0}, "divide 12 outputs"),
        ({"attn": (3, 6)}, "equal sizes"),
    ],
)
def test_heads_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        find_layers(Block(), logits=given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_factors_land_under_the_threshold_after_rounding(dtype):
    model = Block(width=40, of_q=4, of_k=4, size=8).to(dtype)
    with SNCallback(model, threshold={"attn[[]*": 0.1}, logits={"attn": 4}) as callback:
        callback.step()
    for h in range(4):
        assert 0.09 <= spectral_norm(product(model, h, h, size=8)) <= 0.1
