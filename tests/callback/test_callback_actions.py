"""`normalize` brings sigma to the threshold; `cap` clips through the warm block, with a proof."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from no_host_sync import NoHostSync
from small_loops import grow, norms, small_model, spectral_norm
from spectra import SPECTRA, norm, planted, singular_values
from torch import nn
from weights import LoraLinear

from snc_client import SNCallback, certify
from snc_client.callback.monitor import device_group, enforcement, layer_monitor, step_planner

LIMIT = 0.9
KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(20, 30),
    "embedding": lambda: nn.Embedding(50, 12),
    "convolution": lambda: nn.Conv2d(8, 12, 3),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose1d(8, 12, 3),
    "attention": lambda: nn.MultiheadAttention(16, 4),
    "lstm": lambda: nn.LSTM(8, 12),
    "gain": lambda: nn.LayerNorm(16),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)),
}


def exact(callback: SNCallback) -> dict[str, float]:
    """Return the norm of every layer's map as it is now, by float64 SVD of the whole matrix."""
    maps = {layer.name: layer.operator() for layer in callback.layers.layers}
    return {name: norm(x.matmul(torch.eye(x.shape[1]))) for name, x in maps.items()}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_normalize_brings_every_kind_of_layer_to_its_threshold_up_and_down(kind, strict):
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind]())
    maps = {"0.weight": "gain"} if kind == "gain" else None
    limits = {"0.*": LIMIT}
    with SNCallback(model, threshold=limits, action="normalize", strict=strict, maps=maps) as found:
        for factor in (1.0, 3.0, 0.2, 1.01, 0.99):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(factor)
            found.step()
            for name, sigma in exact(found).items():
                assert LIMIT * (1 - 3e-3) <= sigma <= LIMIT * (1 + 1e-4), (name, factor)
    assert found.errors == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_proven_norm_lands_just_under_the_threshold_from_both_sides(name, dtype):
    weight = planted(SPECTRA[name], 120).to(dtype)
    low = 1.5e-2 if dtype == torch.bfloat16 else 1.02e-2  # the second bound of a certificate
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    with SNCallback(model, threshold=LIMIT, action="normalize", strict=True) as callback:
        for factor in (1.0, 1.3, 0.6, 1.0):
            with torch.no_grad():
                model.weight.mul_(factor)
            callback.step()
            assert LIMIT * (1 - low) <= spectral_norm(model.weight) <= LIMIT * (1 + 1e-6)
    assert callback.errors == 0


def test_normalize_scales_a_product_through_both_of_its_factors():
    torch.manual_seed(0)
    model = nn.Sequential(LoraLinear(20, 30, 4))
    pair = model[0]
    with torch.no_grad():
        pair.lora_B["default"].weight.normal_()
    with SNCallback(model, threshold={"*lora*": 0.05}, action="normalize") as callback:
        for factor in (1.0, 10.0, 0.1):
            grow(model, factor)
            callback.step()
            product = pair.lora_B["default"].weight @ pair.lora_A["default"].weight
            assert norm(product.detach()) == pytest.approx(0.05, rel=2e-3)
    assert callback.errors == 0


def test_normalize_leaves_a_zero_weight_and_one_that_is_not_finite_alone():
    model = small_model()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight[0, 0] = math.nan
    before = [model[0].weight.clone(), model[2].weight.clone()]
    with SNCallback(model, threshold=LIMIT, action="normalize") as callback:
        callback.step()
        assert torch.equal(model[0].weight, before[0])
        torch.testing.assert_close(model[2].weight, before[1], rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            model[0].weight.normal_()
            model[2].weight.fill_(1e-20)
        for _ in range(12):  # a block that starts afresh needs some steps
            callback.step()
    assert all(x == pytest.approx(LIMIT, rel=2e-3) for x in norms(model).values())
    assert callback.errors == 0


def test_a_normalized_weight_at_rest_keeps_every_bit():
    model = small_model()
    with SNCallback(model, threshold=LIMIT, action="normalize") as callback:
        for _ in range(20):
            callback.step()
        before = {name: p.clone() for name, p in model.named_parameters()}
        for _ in range(20):
            callback.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_normalize_scales_masters_and_their_copies_follow():
    model = small_model().bfloat16()
    masters = {name: p.detach().float() for name, p in model.named_parameters()}
    with SNCallback(model, threshold=LIMIT, action="normalize", masters=masters) as callback:
        for factor in (3.0, 0.1):
            for name, p in model.named_parameters():
                masters[name].mul_(factor)
                p.data.copy_(masters[name])
            callback.step()
            for name, x in norms(model).items():
                assert LIMIT * (1 - 1e-2) <= x <= LIMIT * (1 + 1e-3)
                assert torch.equal(model.get_parameter(name), masters[name].bfloat16())
    assert callback.errors == 0


def test_a_layer_that_normalize_has_brought_up_is_measured_at_the_next_step_again():
    """By its sigma before the action it would be far below its threshold, and wait for its turn."""
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(12)))
    with SNCallback(model, threshold="4x init", action="normalize") as callback:
        for _ in range(10):
            grow(model, 0.98)
            callback.step()
            thresholds = callback._monitor._groups[0].thresholds.value.tolist()
            ratios = [x / c for x, c in zip(norms(model).values(), thresholds, strict=True)]
            assert min(ratios) > 0.99


def push(model: nn.Linear, step: float, seed: int) -> None:
    """Move a weight as an optimizer does: some growth of all, some noise."""
    noise = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.weight.mul_(1.005).add_(step * noise / spectral_norm(noise))


def linear(weight: torch.Tensor) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["power law", "sixty within two percent", "all equal"])
def test_every_cap_is_proven_by_a_certificate_of_the_result(name, strict):
    model = linear(planted(SPECTRA[name], 120).float())
    with SNCallback(model, threshold=LIMIT, action="cap", strict=strict) as callback:
        for seed in range(12):
            push(model, 0.01, seed)
            callback.step()
            assert certify(model.weight, LIMIT * (1 + 2e-6)).label == "proven"
    assert callback.errors == 0


def test_a_cap_at_rest_writes_nothing_and_certifies_nothing(monkeypatch):
    model = linear(planted(torch.linspace(1.5, 0.1, 40), 60).float())
    proofs = []
    original = enforcement.bound_of
    monkeypatch.setattr(
        enforcement, "bound_of", lambda *given: proofs.append(1) or original(*given)
    )
    with SNCallback(model, threshold=1.0, action="cap", certify_every=None) as callback:
        callback.step()
        assert proofs == [1]
        version, before = model.weight._version, model.weight.clone()
        for _ in range(10):
            callback.step()
    assert proofs == [1]
    assert model.weight._version == version
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_leaves_the_others_capped(bad, strict):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False))
    with SNCallback(model, threshold=1.0, action="cap", strict=strict, certify_every=1) as callback:
        callback.step()
        with torch.no_grad():
            model[0].weight[3, 4] = bad
        for _ in range(4):
            grow(model[1], 2.0)
            callback.step()
            assert norm(model[1].weight.detach()) <= 1.001
    assert callback.errors == 0


def test_a_cap_keeps_what_is_below_and_costs_no_more_than_its_aim():
    values = torch.cat([torch.tensor([3.0, 1.4, 1.2]), torch.linspace(0.9, 0.1, 60)])
    model = linear(planted(values, 90).float())
    with SNCallback(model, threshold=1.0, action="cap") as callback:
        for _ in range(3):
            callback.step()
    torch.testing.assert_close(
        singular_values(model.weight), values.double().clamp(max=1 / 1.001), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("above", [20.0, 100.0, 3000.0])
@pytest.mark.parametrize("count", [1, 40])
def test_a_cap_is_right_far_above_its_threshold(above, count):
    """More values than the block has vectors, or too far above: all are capped at once."""
    values = torch.cat([torch.linspace(above, 2.0, count), torch.linspace(0.9, 0.01, 60)])
    model = linear(planted(values, 120).float())
    with SNCallback(model, threshold=1.0, action="cap") as callback:
        callback.step()
    # Of a number in float32 a part of 6e-8 is not stored, of the largest too.
    found = singular_values(model.weight)
    atol = 5e-6 + 2e-7 * above
    torch.testing.assert_close(found, values.double().clamp(max=1.0), rtol=0, atol=atol)
    assert float(found[0]) <= 1.0


def test_what_a_certificate_finds_above_a_clip_is_divided_out(monkeypatch):
    """The block is made blind for the top direction: the clip misses it, the proof does not."""
    values = torch.cat([torch.tensor([1.005]), torch.linspace(0.95, 0.1, 60)])
    model = linear(planted(values, 90).float())
    _, _, vh = torch.linalg.svd(model.weight.detach(), full_matrices=False)
    with SNCallback(model, threshold=1.0, action="cap", strict=True) as callback:
        monkeypatch.setattr(
            callback._monitor._groups[0].power, "vectors", lambda i: vh[2:18].contiguous()
        )
        callback.step()
    found = singular_values(model.weight)
    assert 0.98 < float(found[0]) <= 1.0
    assert callback.latest["weight"]["scale"] == pytest.approx(float(found[0]) / 1.005, rel=1e-3)


@pytest.mark.parametrize("action", ["cap", "normalize"])
@pytest.mark.parametrize("strict", [False, True])
def test_on_a_device_that_must_not_be_read_they_hold_too(monkeypatch, action, strict):
    for module in (device_group, enforcement, layer_monitor, step_planner):
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)
    model = small_model()
    with SNCallback(model, threshold=LIMIT, action=action, strict=strict) as callback:
        for step in range(12):
            grow(model, 3 if step == 8 else 1.05)
            with NoHostSync():
                callback.step()
            assert all(x <= LIMIT * (1 + 1e-3) for x in norms(model).values())
            assert action == "cap" or all(x >= LIMIT * 0.98 for x in norms(model).values())
    assert callback.errors == 0
