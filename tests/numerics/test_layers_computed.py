"""Weights that a module computes: measured as the forward uses them, never silently enforced."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from weights import assert_measures, assert_scales, dense, named, reasons

from snc_client.layers import find_layers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def only(model):
    (layer,) = find_layers(model).layers
    return layer


def legacy(norm, module):
    with warnings.catch_warnings():
        # torch deprecates the older forms one after the other; models still have them.
        warnings.simplefilter("ignore", FutureWarning)
        return norm(module)


def seen_by_forward(model: nn.Module, inputs: int) -> torch.Tensor:
    """Return the matrix that a forward without its bias really applies."""
    with torch.no_grad():
        return (model(torch.eye(inputs)) - model(torch.zeros(1, inputs))).t()


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_enforced_through_its_scale(dim):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 3), dim=dim))
    layer = only(model)
    assert (layer.name, layer.kind, layer.shape) == ("0.weight", "linear", (3, 5))
    assert "original0" in layer.note
    assert not layer.cappable
    assert_measures(layer, seen_by_forward(model, 5))
    before = seen_by_forward(model, 5)
    assert_scales(layer, [], factor=0.25)
    torch.testing.assert_close(seen_by_forward(model, 5), before * 0.25)


def test_the_older_weight_norm_is_enforced_through_its_scale_too():
    model = nn.Sequential(legacy(nn.utils.weight_norm, nn.Linear(5, 3)))
    layer = only(model)
    assert layer.name == "0.weight"
    assert "weight_g" in layer.note
    before = seen_by_forward(model, 5)
    assert_scales(layer, [])
    torch.testing.assert_close(seen_by_forward(model, 5), before * 0.5)


def test_the_older_weight_norm_is_measured_as_of_now_not_of_the_last_forward():
    model = nn.Sequential(legacy(nn.utils.weight_norm, nn.Linear(5, 3)))
    layer, stale = only(model), model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight_g.mul_(3)
    torch.testing.assert_close(dense(layer), stale * 3)


def test_weight_norm_over_gates_is_enforced_gate_by_gate():
    model = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    layers = [x for x in find_layers(model).layers if x.name.startswith("weight_hh")]
    assert [layer.name[-3:] for layer in layers] == ["[i]", "[f]", "[g]", "[o]"]
    assert_measures(layers[2], model.weight_hh_l0[8:12])
    assert_scales(layers[2], [layers[0], layers[1], layers[3]])


def test_one_scale_for_several_matrices_is_not_enforced():
    model = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0", dim=None)
    layers = [x for x in find_layers(model).layers if x.name.startswith("weight_hh")]
    assert [layer.writable for layer in layers] == [False] * 4
    assert all("one scale for all" in layer.note for layer in layers)
    assert_measures(layers[2], model.weight_hh_l0[8:12])


@pytest.mark.parametrize("make", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_what_a_parametrization_fixes_is_measured_and_never_enforced(make):
    model = nn.Sequential(make(nn.Linear(5, 5))).eval()
    layer = only(model)
    assert not layer.writable
    assert not layer.cappable
    assert "never written" in layer.note
    assert_measures(layer, seen_by_forward(model, 5))


def test_an_orthogonal_weight_measures_one():
    model = parametrizations.orthogonal(nn.Linear(6, 4))
    assert_measures(only(model), torch.eye(4, 6))


def test_writing_a_computed_weight_would_do_nothing():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5)))
    before = seen_by_forward(model, 5)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    torch.testing.assert_close(seen_by_forward(model, 5), before)


def test_measuring_does_not_advance_the_power_iteration_of_spectral_norm():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 5))).train()
    before = copy.deepcopy(model.state_dict())
    first, second = dense(only(model)), dense(only(model))
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert model[0].parametrizations.weight[0].training


def test_the_older_spectral_norm_is_measured_without_advancing_it():
    model = nn.Sequential(legacy(nn.utils.spectral_norm, nn.Linear(5, 5))).train()
    before = copy.deepcopy(model.state_dict())
    layer = only(model)
    measured = dense(layer)
    assert not layer.writable
    assert layer.name == "0.weight"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert_measures(layer, seen_by_forward(model.eval(), 5))
    assert_measures(layer, measured)


class Halved(nn.Module):
    """A parametrization with a parameter of its own, which is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 0.5 * weight @ self.mix


def test_any_parametrization_is_measured_as_it_computes():
    model = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Halved())
    coverage = find_layers(model)
    (layer,) = coverage.layers
    assert "Halved" in layer.note
    assert not layer.writable
    assert_measures(layer, seen_by_forward(model, 4))
    assert list(reasons(coverage)) == ["0.bias"]
    assert coverage.measured_parameters == 12 + 16


def test_weight_norm_below_another_parametrization_is_not_enforced():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    parametrize.register_parametrization(model[0], "weight", Halved())
    assert not only(model).writable


def test_a_computed_weight_is_measured_once_under_two_names():
    shared = parametrizations.weight_norm(nn.Linear(3, 3, bias=False))
    layer = only(nn.ModuleDict({"a": shared, "b": shared}))
    assert layer.names == ("a.weight", "b.weight")


def test_a_frozen_scale_is_never_written():
    model = parametrizations.weight_norm(nn.Linear(3, 3)).requires_grad_(False)
    assert not only(model).writable


def test_a_parametrized_convolution_is_measured_as_one():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    layer = only(model)
    assert layer.kind == "conv"
    assert_measures(layer, model[0].weight.flatten(1))
    assert_scales(layer, [])


def test_a_layer_survives_the_removal_of_its_parametrization_with_a_sentence():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    layer = only(model)
    parametrize.remove_parametrizations(model[0], "weight")
    with pytest.raises(LookupError, match=r"'0.weight'"):
        layer.operator()
    assert only(model).cappable


def test_a_pruned_weight_is_measured_behind_its_mask_and_enforced_before_it():
    model = nn.Sequential(nn.Linear(6, 5))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    layer = only(model)
    assert layer.name == "0.weight"
    assert not layer.cappable
    assert_measures(layer, seen_by_forward(model, 6))
    assert int((dense(layer) == 0).sum()) == 15
    assert_scales(layer, [])


def test_nan_inside_a_computed_weight_is_measured_as_nan():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    layer = named(find_layers(model))["0.weight"]
    with torch.no_grad():
        model[0].parametrizations.weight.original1[0, 0] = float("nan")
    assert torch.isnan(layer.operator().amax())
