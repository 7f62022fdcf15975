"""Gains and looked-up tables: what they are as maps, against explicit matrices; clips of theirs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from weights import named, reasons, spectral_norm

from snc_client import SNCallback
from snc_client.bounds import bound
from snc_client.layers import find_layers
from snc_client.measurement import measure


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model_with(norm: nn.Module) -> nn.ModuleDict:
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape))
    return nn.ModuleDict({"fc": nn.Linear(3, 3, bias=False), "norm": norm})


def gain_of(model: nn.Module):
    return named(find_layers(model, maps={"norm.weight": "gain"}))["norm.weight"]


NORMS = [
    lambda: nn.LayerNorm(12),
    lambda: nn.LayerNorm((3, 4)),
    lambda: nn.RMSNorm(12),
    lambda: nn.GroupNorm(3, 12),
    lambda: nn.BatchNorm1d(12, track_running_stats=False),
    lambda: nn.InstanceNorm2d(12, affine=True),
]


@pytest.mark.parametrize("make", NORMS)
def test_a_gain_is_the_norm_of_its_diagonal_matrix(make):
    model = model_with(make())
    layer = gain_of(model)
    exact = spectral_norm(torch.diag(model["norm"].weight.flatten()))
    assert (layer.kind, layer.writable, layer.cappable) == ("gain", True, True)
    assert float(layer.operator().amax()) == pytest.approx(exact, rel=1e-7)
    upper = float(bound(layer.operator(), torch.tensor(0.0)))
    assert exact <= upper <= exact * (1 + 2e-6)


def test_a_batch_norm_is_what_it_does_in_evaluation():
    norm = nn.BatchNorm1d(5)
    model = model_with(norm)
    norm.running_var.copy_(torch.tensor([0.01, 1.0, 4.0, 1e-8, 100.0]))
    norm.running_mean.zero_()
    layer, x = gain_of(model), torch.eye(5)
    diagonal = norm.eval()(x) - norm(torch.zeros(1, 5))
    assert float(layer.operator().amax()) == pytest.approx(spectral_norm(diagonal), rel=1e-5)
    assert "evaluation" in layer.note
    assert not layer.cappable, "a clip at the threshold is not one of gain / sqrt(var + eps)"
    norm.weight.detach().mul_(0.5)
    assert float(layer.operator().amax()) == pytest.approx(spectral_norm(diagonal) / 2, rel=1e-5)


def test_only_gains_that_are_asked_for_are_measured_and_the_reason_says_how():
    coverage = find_layers(model_with(nn.LayerNorm(4)))
    assert list(named(coverage)) == ["fc.weight"]
    assert "maps=" in reasons(coverage)["norm.weight"]
    asked = find_layers(model_with(nn.LayerNorm(4)), maps={"norm.weight": "gain"})
    assert "norm.bias" in reasons(asked)


@pytest.mark.parametrize(("action", "clipped"), [("rescale", False), ("cap", True)])
def test_a_gain_is_held_at_its_threshold_entry_by_entry_where_it_is_capped(action, clipped):
    model = model_with(nn.LayerNorm(6))
    gain = model["norm"].weight
    with torch.no_grad():
        gain.copy_(torch.tensor([3.0, -4.0, 0.5, 1.0, -1.0, 0.0]))
    before = gain.detach().clone()
    with SNCallback(
        model, threshold={"norm.weight": 2.0}, action=action, maps={"norm.*": "gain"}
    ) as callback:
        callback.step()
        callback.step()
    reading = callback.latest["norm.weight"]
    expected = before.clamp(-2, 2) if clipped else before / 2
    torch.testing.assert_close(gain.detach(), expected, rtol=2e-6, atol=0)
    assert float(gain.detach().abs().max()) <= 2.0
    assert reading["sigma_upper_from"] == "certified"
    assert reading["sigma"] <= reading["sigma_upper"]


def test_strict_holds_gains_and_rows():
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "table": nn.Embedding(9, 4)})
    maps = {"norm.weight": "gain", "table.weight": "rows"}
    with SNCallback(model, threshold=0.5, strict=True, maps=maps) as callback:
        for _ in range(3):
            with torch.no_grad():
                model["norm"].weight.mul_(3)
                model["table"].weight.mul_(3)
            callback.step()
            assert float(model["norm"].weight.detach().abs().max()) <= 0.5
            rows = torch.linalg.vector_norm(model["table"].weight.detach().double(), dim=1)
            assert float(rows.max()) <= 0.5 * (1 + 1e-7)
    assert callback.errors == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_looked_up_table_is_its_longest_row_at_any_scale(scale):
    model = nn.Sequential(nn.Embedding(50, 7))
    model[0].weight.detach().mul_(scale)
    (layer,) = find_layers(model, maps={"*": "rows"}).layers
    table = model[0].weight.detach().double()
    exact = max(spectral_norm(row.unsqueeze(0)) for row in table)
    assert float(layer.operator().amax()) == pytest.approx(exact, rel=1e-6)
    upper = float(bound(layer.operator(), torch.tensor(0.0)))
    assert exact <= upper <= exact * (1 + 2e-6)
    assert exact < spectral_norm(table)
    outputs = torch.linalg.vector_norm(model(torch.arange(50)).detach().double(), dim=1)
    assert float(outputs.max()) == pytest.approx(exact)


def test_capping_a_table_shrinks_the_rows_that_are_too_long_and_no_other():
    model = nn.Sequential(nn.Embedding(20, 5))
    with torch.no_grad():
        model[0].weight.div_(torch.linalg.vector_norm(model[0].weight, dim=1, keepdim=True))
        model[0].weight.mul_(torch.linspace(0.1, 2.0, 20).unsqueeze(1))
    before = model[0].weight.detach().clone()
    with SNCallback(model, threshold=1.0, action="cap", maps={"0.weight": "rows"}) as callback:
        callback.step()
    after = model[0].weight.detach()
    lengths = torch.linalg.vector_norm(after.double(), dim=1)
    assert torch.equal(after[:9], before[:9])
    assert float(lengths.max()) <= 1.0
    torch.testing.assert_close(lengths[10:], torch.ones(10).double(), rtol=3e-6, atol=0)
    torch.testing.assert_close(nn.functional.normalize(after), nn.functional.normalize(before))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gain_or_a_table_that_is_not_finite_is_not_written(bad):
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "table": nn.Embedding(9, 4)})
    with torch.no_grad():
        model["norm"].weight[2] = bad
        model["table"].weight[1, 1] = bad
    before = {k: v.clone() for k, v in model.state_dict().items()}
    maps = {"norm.weight": "gain", "table.weight": "rows"}
    for action in ("rescale", "cap"):
        with SNCallback(model, threshold=0.5, action=action, maps=maps) as callback:
            callback.step()
        assert not callback.errors
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))


@pytest.mark.parametrize(
    ("model", "maps", "message"),
    [
        (nn.Linear(2, 2), {"weight": "gain"}, "torch's own normalisations"),
        (nn.Linear(2, 2), {"weight": "rows"}, "only of an Embedding"),
        (nn.LayerNorm(2), {"bias": "gain"}, "'bias' matches none"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), {"*": "rows"}, "stored as such"),
        (nn.LayerNorm(2), {"weight": "row"}, "one of gain, rows"),
        (nn.LayerNorm(2).to("meta"), {"weight": "gain"}, "meta device"),
        (nn.Linear(2, 2), {"norm": "gain"}, "'norm' matches none"),
    ],
)
def test_a_map_that_a_weight_is_not_is_refused_with_a_sentence(model, maps, message):
    with pytest.raises(ValueError, match=message):
        find_layers(model, maps=maps)


def test_measuring_without_a_callback_leaves_gains_alone():
    assert set(measure(model_with(nn.LayerNorm(4)))) == {"fc.weight"}


def test_a_job_goes_on_when_the_gain_is_gone():
    model = model_with(nn.LayerNorm(4))
    with SNCallback(model, maps={"norm.weight": "gain"}) as callback:
        callback.step()
        del model["norm"]
        callback.step()
        assert "norm.weight" not in {x.name for x in callback.rescan().layers}
        callback.step()
    assert callback.errors == 0
