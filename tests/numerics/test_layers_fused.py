"""Weights that hold several matrices, cut by the class that owns them, without its library."""

import pytest
import torch
from torch import nn
from weights import Experts, assert_measures, assert_scales, named

from snc_client.layers import find_layers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def of(library: str, name: str, **attributes) -> nn.Module:
    """Return a module of a class that a library has, as far as the walk looks at it."""
    module = type(name, (nn.Module,), {"__module__": library})()
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def assert_parts(model: nn.Module, **parts: torch.Tensor) -> None:
    """Each named layer measures its matrix, and is written alone."""
    layers = named(find_layers(model))
    assert list(layers) == list(parts)
    for name, matrix in parts.items():
        assert_measures(layers[name], matrix)
        others = [layer for other, layer in layers.items() if other != name]
        assert_scales(layers[name], others)


PHI3 = "transformers.models.phi3.modeling_phi3"
GPT2 = "transformers.models.gpt2.modeling_gpt2"


def test_a_gate_and_what_it_opens_are_two_matrices():
    model = of(PHI3, "Phi3MLP", gate_up_proj=nn.Linear(4, 12, bias=False))
    gate, up = model.gate_up_proj.weight.chunk(2)
    assert_parts(model, **{"gate_up_proj.weight[gate]": gate, "gate_up_proj.weight[up]": up})
    (note,) = {layer.note for layer in find_layers(model).layers}
    assert note == "a part of gate, up, which Phi3MLP stores in one weight"


@pytest.mark.parametrize(("gate_last", "order"), [(True, ("up", "gate")), (False, ("gate", "up"))])
def test_the_order_may_depend_on_the_module(gate_last, order):
    fc1 = nn.Linear(4, 12, bias=False)
    model = of("timm.layers.mlp", "GluMlp", fc1=fc1, gate_last=gate_last)
    first, second = fc1.weight.chunk(2)
    assert_parts(model, **{f"fc1.weight[{order[0]}]": first, f"fc1.weight[{order[1]}]": second})


def test_heads_that_share_a_key_have_parts_of_different_size():
    sizes = {"num_key_value_heads": 2, "num_key_value_groups": 3, "head_dim": 1}
    model = of(PHI3, "Phi3Attention", qkv_proj=nn.Linear(4, 10, bias=False), **sizes)
    q, k, v = model.qkv_proj.weight.split([6, 2, 2])
    assert_parts(
        model, **{"qkv_proj.weight[q]": q, "qkv_proj.weight[k]": k, "qkv_proj.weight[v]": v}
    )


def test_attention_to_another_sequence_has_no_q_in_its_fused_weight():
    attention = of(GPT2, "GPT2Attention", c_attn=nn.Linear(4, 8), is_cross_attention=True)
    names = [layer.name for layer in find_layers(attention).layers]
    assert names == ["c_attn.weight[k]", "c_attn.weight[v]"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
def test_experts_say_how_their_stack_lies(transposed, concatenated):
    experts = Experts(2, 3, 6) if transposed else Experts(2, 6, 3)
    experts.has_gate, experts.is_transposed = True, transposed
    experts.is_concatenated = concatenated
    rows = experts.gate_up_proj.mT if transposed else experts.gate_up_proj
    parts = {}
    for e in range(2):
        gate, up = rows[e].chunk(2) if concatenated else (rows[e][0::2], rows[e][1::2])
        parts[f"experts.gate_up_proj[{e}][gate]"] = gate
        parts[f"experts.gate_up_proj[{e}][up]"] = up
    assert_parts(nn.ModuleDict({"experts": experts}), **parts)


def test_a_transposed_stack_has_its_outputs_in_the_columns_for_split_too():
    model = of("transformers.models.x.modeling_x", "XExperts", is_transposed=True)
    model.down_proj = nn.Parameter(torch.randn(2, 4, 6))
    (first, *_) = find_layers(model).layers
    assert (first.fan_out, first.fan_in, first.linear) == (6, 4, True)
    layers = named(find_layers(model, split={"down_proj": "ab"}))
    assert_measures(layers["down_proj[1][b]"], model.down_proj[1].T[3:])


@pytest.mark.parametrize(("split", "parts"), [("", [""]), ("ab", ["[a]", "[b]"])])
def test_what_the_user_asks_for_goes_before_what_is_known(split, parts):
    model = of(PHI3, "Phi3MLP", gate_up_proj=nn.Linear(4, 12))
    layers = find_layers(model, split={"gate_up_proj.weight": split}).layers
    assert [layer.name for layer in layers] == [f"gate_up_proj.weight{part}" for part in parts]


def test_a_class_of_that_name_in_another_library_stays_whole():
    for library in ("mine", "transformersx.models", "timm.models.levit"):
        model = of(library, "Phi3MLP", gate_up_proj=nn.Linear(4, 12))
        assert [layer.name for layer in find_layers(model).layers] == ["gate_up_proj.weight"]


def test_a_subclass_is_cut_as_its_base_is():
    base = type(of(PHI3, "Phi3MLP"))
    model = type("FSDPPhi3MLP", (base,), {"__module__": "torch.distributed"})()
    model.gate_up_proj = nn.Linear(4, 12)
    assert len(find_layers(model).layers) == 2


def test_a_convolution_under_a_known_name_stays_whole():
    model = of("timm.layers.mlp", "GluMlp", fc1=nn.Conv2d(4, 12, 1), gate_last=True)
    assert [layer.name for layer in find_layers(model).layers] == ["fc1.weight"]


class PositionalEmbedding(nn.Embedding):
    pass


@pytest.mark.parametrize(
    ("name", "module", "linear"),
    [
        ("wte", nn.Embedding(6, 4), True),
        ("token_type_embeddings", nn.Embedding(2, 4), True),
        ("composed", nn.Embedding(6, 4), True),
        ("wpe", nn.Embedding(6, 4), False),
        ("embed_positions", nn.Embedding(6, 4), False),
        ("position_embeddings", nn.Embedding(6, 4), False),
        ("relative_attention_bias", nn.Embedding(6, 4), False),
        ("rel_embeddings", nn.Embedding(6, 4), False),
        ("table", PositionalEmbedding(6, 4), False),
    ],
)
def test_a_table_of_positions_is_no_linear_map(name, module, linear):
    (layer,) = find_layers(nn.ModuleDict({name: module})).layers
    assert (layer.kind, layer.linear) == ("embedding", linear)
    assert linear is ("not known to be a linear map" not in (layer.note or ""))


class ScaledStdConv2d(nn.Conv2d):
    pass


class WeightStandardizedConv2d(nn.Conv2d):
    pass


@pytest.mark.parametrize("kind", [ScaledStdConv2d, WeightStandardizedConv2d])
@pytest.mark.parametrize("conv", ["reshape", "operator"])
def test_a_convolution_that_standardises_its_weight_is_left_to_those_who_name_it(kind, conv):
    (layer,) = find_layers(kind(3, 4, 3), conv=conv).layers
    assert (layer.kind, layer.writable, layer.linear) == ("conv", True, False)
