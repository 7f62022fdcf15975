"""Every kind of weight against explicit slices; names, ties, reasons; the model stays as it was."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from weights import (
    Conv1D,
    Experts,
    LoraLinear,
    assert_measures,
    assert_scales,
    dense,
    named,
    reasons,
    spectral_norm,
)

from snc_client import SNCallback
from snc_client.layers import find_layers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def only(model, **options):
    (layer,) = find_layers(model, **options).layers
    return layer


def test_a_linear_layer_is_its_weight():
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    layer = only(model)
    assert (layer.name, layer.kind, layer.shape) == ("0.weight", "linear", (3, 5))
    assert layer.weight().data_ptr() == model[0].weight.data_ptr()
    assert layer.cappable
    assert_measures(layer, model[0].weight)


def test_a_hugging_face_conv1d_is_transposed():
    model = nn.Sequential(Conv1D(nf=3, nx=5))
    layer = only(model)
    assert (layer.kind, layer.shape, layer.cappable) == ("linear", (5, 3), True)
    assert_measures(layer, model[0].weight.t())
    assert layer.weight().shape == (3, 5)
    assert_scales(layer, [])


class Fused(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.c_attn = make()


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 12), lambda: Conv1D(12, 4)])
def test_a_fused_projection_is_measured_whole_and_says_so(make):
    layer = only(Fused(make))
    assert layer.name == "c_attn.weight"
    assert "fused" in layer.note


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 12), lambda: Conv1D(12, 4)])
def test_a_fused_projection_is_split_where_it_is_asked_to_be(make):
    model = Fused(make)
    weight = model.c_attn.weight if isinstance(model.c_attn, nn.Linear) else model.c_attn.weight.t()
    layers = named(find_layers(model, split={"*c_attn.weight": "qkv"}))
    assert list(layers) == [f"c_attn.weight[{part}]" for part in "qkv"]
    for layer, part in zip(layers.values(), weight.chunk(3), strict=True):
        assert_measures(layer, part)
        assert layer.note is None
    q, *others = layers.values()
    assert_scales(q, others)


def test_grouped_query_attention_has_parts_of_different_size():
    model = Fused(lambda: nn.Linear(8, 16))
    sizes = {"q": 8, "k": 4, "v": 4}
    layers = find_layers(model, split={"c_attn.weight": sizes}).layers
    assert [layer.shape for layer in layers] == [(8, 8), (4, 8), (4, 8)]
    assert_measures(layers[1], model.c_attn.weight[8:12])


def test_a_projection_is_split_by_head():
    model = Fused(lambda: nn.Linear(8, 24))
    heads = [f"{part}{head}" for part in "qkv" for head in range(4)]
    layers = named(find_layers(model, split={"*": heads}))
    assert_measures(layers["c_attn.weight[k2]"], model.c_attn.weight[12:14])
    assert len(layers) == 12


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"nothing.*": "qkv"}, r"'nothing\.\*' matches none"),
        ({"*": {"q": 4, "k": 4}}, r"^c_attn.weight: parts must add up to 12 outputs"),
        ({"*": {"q": 16, "k": -4}}, r"parts must add up to 12 outputs"),
        ({"*": "qkvab"}, r"parts must add up to 12 outputs"),
        ({"*": "qqq"}, r"parts must add up to 12 outputs"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(split, message):
    with pytest.raises(ValueError, match=message):
        find_layers(Fused(lambda: nn.Linear(4, 12, bias=False)), split=split)


def test_a_split_of_what_is_not_measured_by_itself_is_refused():
    for pattern in ("0.bias", "*lora_B*"):
        model = nn.Sequential(nn.Linear(4, 12), LoraLinear(6, 4, rank=2))
        with pytest.raises(ValueError, match="matches none"):
            find_layers(model, split={pattern: "qkv"})


def test_a_split_cuts_every_matrix_of_a_stack():
    model = Experts(2, 4, 4)
    layers = named(find_layers(model, split={"gate_up_proj": ("gate", "up")}))
    for expert in range(2):
        halves = model.gate_up_proj[expert].chunk(2)
        for half, part in zip(halves, ("gate", "up"), strict=True):
            assert torch.equal(layers[f"gate_up_proj[{expert}][{part}]"].weight(), half)


def test_a_split_of_a_tensor_that_is_no_stack_of_matrices_is_refused():
    model = nn.ModuleDict({"odd": nn.ParameterList([torch.randn(2, 3, 4, 5)])})
    with pytest.raises(ValueError, match=r"must name a 2-d matrix or a stack of matrices"):
        find_layers(model, split={"*": "ab"})


def test_multihead_attention_has_three_projections_and_an_output():
    model = nn.MultiheadAttention(6, 2)
    layers = named(find_layers(model))
    names = [*(f"in_proj_weight[{part}]" for part in "qkv"), "out_proj.weight"]
    assert list(layers) == names
    for part, name in zip(model.in_proj_weight.chunk(3), names, strict=False):
        assert layers[name].kind == "attention"
        assert_measures(layers[name], part)
    assert_scales(layers[names[1]], [layers[name] for name in names if name != names[1]])


def test_multihead_attention_with_other_key_sizes_has_a_weight_each():
    model = nn.MultiheadAttention(6, 2, kdim=4, vdim=5, add_bias_kv=True)
    coverage = find_layers(model)
    layers = named(coverage)
    assert [x.shape for x in layers.values()] == [(6, 6), (6, 4), (6, 5), (6, 6)]
    assert_measures(layers["k_proj_weight"], model.k_proj_weight)
    assert reasons(coverage)["bias_k"] == "a vector in the shape of a matrix"


def test_each_expert_of_a_stack_is_a_layer():
    model = Experts(3, 4, 5)
    layers = find_layers(model).layers
    assert [layer.name for layer in layers] == [f"gate_up_proj[{e}]" for e in range(3)]
    for expert, layer in enumerate(layers):
        assert (layer.kind, layer.shape) == ("expert", (4, 5))
        assert_measures(layer, model.gate_up_proj[expert])
    assert_scales(layers[1], [layers[0], layers[2]])


def test_a_position_table_of_three_dimensions_is_one_matrix():
    model = nn.ParameterDict({"pos": nn.Parameter(torch.randn(1, 7, 4))})
    layer = only(model)
    assert layer.name == "pos"
    assert_measures(layer, model["pos"][0])


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_is_its_table(make):
    model = nn.Sequential(make(9, 4))
    assert only(model).kind == "embedding"
    assert_measures(only(model), model[0].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.wte.weight


def test_tied_weights_are_one_layer_with_all_names():
    coverage = find_layers(Tied())
    (layer,) = coverage.layers
    assert layer.names == ("wte.weight", "head.weight")
    assert coverage.total_parameters == coverage.measured_parameters == 36
    assert "tied with head.weight" in str(coverage)
    assert_scales(layer, [])


def test_a_module_under_two_names_is_one_layer():
    shared = nn.Linear(3, 3, bias=False)
    assert only(nn.ModuleDict({"a": shared, "b": shared})).names == ("a.weight", "b.weight")


def test_two_parameters_over_the_same_memory_are_one_layer():
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Parameter(torch.randn(3, 5))
            self.decode = nn.Parameter(self.encode.detach().t())

    layer = only(Transposed())
    assert layer.names == ("encode", "decode")


def test_equal_numbers_in_different_memory_are_not_tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].load_state_dict(model[0].state_dict())
    assert len(find_layers(model).layers) == 2


def test_a_lora_pair_is_the_product_and_its_base_is_frozen():
    model = nn.ModuleDict({"q_proj": LoraLinear(6, 4, rank=2)})
    coverage = find_layers(model)
    base, pair = coverage.layers
    assert (base.name, base.writable) == ("q_proj.base_layer.weight", False)
    assert base.note.startswith("frozen")
    lora = model["q_proj"]
    assert (pair.name, pair.kind) == ("q_proj.lora_B.default.weight[BA]", "lora")
    assert_measures(pair, lora.lora_B["default"].weight @ lora.lora_A["default"].weight)
    assert_scales(pair, [base])
    assert [x.data_ptr() for x in pair.factors()] == [
        lora.lora_B["default"].weight.data_ptr(), lora.lora_A["default"].weight.data_ptr(),
    ]  # fmt: skip
    assert not pair.cappable
    assert coverage.measured_parameters == coverage.total_parameters
    assert coverage.skipped == ()


def test_lora_factors_as_bare_parameters_are_a_pair_too():
    class Lora(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 4, bias=False)
            self.lora_A = nn.Parameter(torch.randn(2, 5))
            self.lora_B = nn.Parameter(torch.randn(4, 2))

    model = Lora()
    layers = named(find_layers(model))
    assert list(layers) == ["weight", "lora_B[BA]"]
    assert_measures(layers["lora_B[BA]"], model.lora_B @ model.lora_A)


def test_a_lora_pair_of_which_one_factor_is_frozen_is_enforced_through_the_other():
    lora = LoraLinear(6, 4, rank=2)
    lora.lora_B.requires_grad_(False)
    pair = named(find_layers(lora))["lora_B.default.weight[BA]"]
    (only,) = pair.factors()
    assert only.data_ptr() == lora.lora_A["default"].weight.data_ptr()
    lora.lora_A.requires_grad_(False)
    assert not named(find_layers(lora))["lora_B.default.weight[BA]"].writable


@pytest.mark.parametrize("strict", [False, True])
def test_both_factors_of_a_lora_pair_take_the_root_of_the_scale(strict):
    lora = LoraLinear(6, 4, rank=2)
    b, a = (x["default"].weight for x in (lora.lora_B, lora.lora_A))
    before = b.detach().clone(), a.detach().clone()
    limit = 0.25 * spectral_norm(b @ a)
    with SNCallback(lora, threshold={"lora_B*": limit}, strict=strict) as callback:
        callback.step()
    assert 0.998 * limit <= spectral_norm(b.double() @ a.double()) <= limit * (1 + 1e-6)
    torch.testing.assert_close(b / before[0], torch.full_like(b, 0.5), rtol=2e-3, atol=0)
    torch.testing.assert_close(a / before[1], torch.full_like(a, 0.5), rtol=2e-3, atol=0)


def test_convolutional_lora_is_the_product_of_the_flattened_factors():
    lora = LoraLinear(1, 1, 1)
    lora.lora_A["default"] = nn.Conv2d(3, 2, 3, bias=False)
    lora.lora_B["default"] = nn.Conv2d(2, 5, 1, bias=False)
    pair = named(find_layers(lora))["lora_B.default.weight[BA]"]
    b, a = lora.lora_B["default"].weight.flatten(1), lora.lora_A["default"].weight.flatten(1)
    assert_measures(pair, b @ a)


def test_a_pair_of_rank_one_is_a_pair():
    layers = named(find_layers(LoraLinear(6, 4, rank=1)))
    assert list(layers) == ["base_layer.weight", "lora_B.default.weight[BA]"]


def test_embedding_lora_is_a_pair_and_other_names_are_not():
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_embedding_A = nn.ParameterDict({"default": torch.randn(2, 9)})
            self.lora_embedding_B = nn.ParameterDict({"default": torch.randn(4, 2)})
            self.embedding_A = nn.Embedding(4, 4)
            self.embedding_B = nn.Embedding(4, 4)

    model = Lora()
    layers = named(find_layers(model))
    assert set(layers) == {
        "lora_embedding_B.default[BA]", "embedding_A.weight", "embedding_B.weight",
    }  # fmt: skip
    product = model.lora_embedding_B["default"] @ model.lora_embedding_A["default"]
    assert_measures(layers["lora_embedding_B.default[BA]"], product)


def test_a_pair_without_numbers_is_skipped_with_the_reason():
    lora = LoraLinear(6, 4, rank=2)
    lora.lora_A.to("meta")
    coverage = find_layers(lora)
    assert "meta device" in reasons(coverage)["lora_A.default.weight"]
    assert "lora_B.default.weight" in named(coverage)


def test_lora_factors_that_do_not_fit_are_matrices_of_their_own():
    lora = LoraLinear(6, 4, rank=2)
    lora.lora_B["default"] = nn.Linear(3, 4, bias=False)
    assert set(named(find_layers(lora))) == {
        "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "gates"),
    [(nn.LSTM, "ifgo"), (nn.GRU, "rzn"), (nn.LSTMCell, "ifgo"), (nn.GRUCell, "rzn")],
)
def test_recurrent_weights_have_a_layer_for_each_gate(make, gates):
    model = make(3, 4)
    layers = named(find_layers(model))
    for key, weight in model.named_parameters():
        if key.startswith("weight"):
            for gate, part in zip(gates, weight.chunk(len(gates)), strict=True):
                assert layers[f"{key}[{gate}]"].kind == "recurrent"
                assert_measures(layers[f"{key}[{gate}]"], part)
    assert len(layers) == 2 * len(gates)
    first, *others = layers.values()
    assert_scales(first, others)


@pytest.mark.parametrize("make", [nn.RNN, nn.RNNCell])
def test_a_plain_recurrent_weight_has_no_gates(make):
    assert all("[" not in name for name in named(find_layers(make(3, 4))))


def test_layers_directions_and_the_projection_of_an_lstm_are_all_found():
    model = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    layers = named(find_layers(model))
    assert len(layers) == 4 * (4 + 4 + 1)
    assert layers["weight_hr_l1_reverse"].shape == (2, 4)


def test_enforcement_reaches_a_recurrent_forward():
    model = nn.GRU(3, 4)
    x = torch.randn(5, 1, 3)
    with torch.no_grad():
        for layer in find_layers(model).layers:
            layer.weight().zero_()
        model.bias_ih_l0.zero_()
        model.bias_hh_l0.zero_()
    assert not model(x)[0].any()


def test_a_bilinear_weight_is_unfolded():
    model = nn.Sequential(nn.Bilinear(3, 4, 2))
    layer = only(model)
    assert (layer.kind, layer.shape) == ("bilinear", (2, 3, 4))
    assert_measures(layer, model[0].weight.flatten(1))
    assert "upper bound" in layer.note
    x, y = torch.randn(100, 3), torch.randn(100, 4)
    gain = (model[0](x, y) - model[0].bias).norm(dim=1) / (x.norm(dim=1) * y.norm(dim=1))
    assert float(gain.detach().max()) <= spectral_norm(dense(layer))


def test_a_transformer_layer_is_covered_whole():
    coverage = find_layers(nn.TransformerEncoderLayer(8, 2, 16))
    assert [layer.name for layer in coverage.layers] == [
        "self_attn.in_proj_weight[q]",
        "self_attn.in_proj_weight[k]",
        "self_attn.in_proj_weight[v]",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    assert {x.name for x in coverage.skipped} == {
        "self_attn.in_proj_bias", "self_attn.out_proj.bias", "linear1.bias", "linear2.bias",
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
    }  # fmt: skip


def test_an_unknown_module_with_four_dimensions_is_seen_as_out_times_rest():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 2, 2))

    model = Own()
    layer = only(model)
    assert layer.kind == "tensor"
    assert "no rule knows Own" in layer.note
    assert_measures(layer, model.kernel.flatten(1))


def test_weights_in_lists_and_at_the_root_are_found():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.randn(2, 3))
            self.many = nn.ParameterList([torch.randn(3, 2), torch.randn(4, 2)])

    model = Root()
    layers = named(find_layers(model))
    assert list(layers) == ["own", "many.0", "many.1"]
    assert_measures(layers["many.1"], model.many[1])


def test_frozen_weights_are_measured_and_never_writable():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False))
    free, frozen = find_layers(model).layers
    assert (free.writable, frozen.writable, frozen.cappable) == (True, False, False)
    assert frozen.note.startswith("frozen")
    assert_measures(frozen, model[1].weight)


def test_a_weight_that_is_frozen_under_one_of_its_names_is_frozen():
    model = Tied()
    model.head.weight = nn.Parameter(model.wte.weight.detach(), requires_grad=False)
    assert not only(model).writable


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_are_written_in_their_own(dtype):
    model = nn.Linear(4, 4).to(dtype)
    layer = only(model)
    assert layer.weight().dtype == dtype
    assert layer.operator().matmul(torch.eye(4)).dtype == torch.float32
    assert_measures(layer, model.weight)


class Odd(nn.Module):
    """One good matrix, and beside it ``tensor`` as a parameter."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.good = nn.Parameter(torch.randn(2, 2))
        self.odd = nn.Parameter(tensor, requires_grad=tensor.dtype.is_floating_point)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(3), "a vector"),
        (torch.ones(1, 1, 8), "a vector in the shape of a matrix"),
        (torch.tensor(1.0), "a vector"),
        (torch.empty(0, 4), "empty"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, 2, dtype=torch.int8), "int8"),
        (torch.ones(2, 2, dtype=torch.uint8), "uint8"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "float8"),
        (torch.ones(2, 2, device="meta"), "meta device"),
        (torch.eye(3).to_sparse(), "sparse"),
    ],
    ids=["vector", "shaped vector", "scalar", "empty", "complex", "int8", "uint8", "float8", "meta",
         "sparse"],
)  # fmt: skip
def test_what_is_no_dense_matrix_of_floats_is_skipped_with_the_reason(tensor, reason):
    coverage = find_layers(Odd(tensor))
    assert list(named(coverage)) == ["good"]
    assert reason in reasons(coverage)["odd"]
    assert coverage.skipped[0].shape == tuple(tensor.shape)


def test_a_lazy_module_is_skipped_until_its_first_forward():
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    assert "not initialised" in reasons(find_layers(model))["1.weight"]
    model(torch.ones(1, 3))
    assert "1.weight" in named(find_layers(model))


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((3, 4)), nn.RMSNorm((3, 4)), nn.BatchNorm2d(3), nn.GroupNorm(1, 3)]
)
def test_gains_of_normalisations_are_no_matrices_whatever_their_shape(norm):
    coverage = find_layers(nn.ModuleDict({"fc": nn.Linear(2, 2, bias=False), "norm": norm}))
    assert list(named(coverage)) == ["fc.weight"]
    assert "normalisation" in reasons(coverage)["norm.weight"]


def test_integer_weights_that_hide_in_buffers_are_listed():
    model = nn.Sequential(nn.Linear(3, 3))
    model.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    assert "quantised" in reasons(find_layers(model))["qweight"]


@pytest.fixture
def mesh():
    """Yield a device mesh of this one process."""
    tensor = pytest.importorskip("torch.distributed.tensor", reason="torch has no distributed")
    if not hasattr(tensor, "distribute_tensor"):
        pytest.skip("needs torch >= 2.5")
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_sharded_tensor_is_a_layer_of_its_whole_shape_without_an_operator(mesh):
    tensor = torch.distributed.tensor
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    sharded = tensor.distribute_tensor(model[1].weight.detach(), mesh, [tensor.Shard(0)])
    model[1].weight = nn.Parameter(sharded)
    coverage = find_layers(model)
    first, second = coverage.layers
    assert (first.sharded, second.sharded) == (False, True)
    assert (second.name, second.shape, second.cappable) == ("1.weight", (3, 3), True)
    (here,) = second.shard().pieces
    assert torch.equal(here.local, sharded.to_local())
    with pytest.raises(LookupError, match="must be whole to be multiplied"):
        second.operator()


def test_a_tensor_of_which_every_rank_holds_all_is_like_any_other(mesh):
    tensor = torch.distributed.tensor
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    same = tensor.distribute_tensor(model[0].weight.detach(), mesh, [tensor.Replicate()])
    model[0].weight = nn.Parameter(same)
    (layer,) = find_layers(model).layers
    assert not layer.sharded
    assert torch.equal(layer.operator().weight, same.to_local())


def test_a_partial_sum_is_skipped_with_the_reason(mesh):
    tensor = torch.distributed.tensor
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    part = tensor.DTensor.from_local(model[1].weight.detach(), mesh, [tensor.Partial()])
    model[1].weight = nn.Parameter(part)
    coverage = find_layers(model)
    assert list(named(coverage)) == ["0.weight"]
    assert "placement P" in reasons(coverage)["1.weight"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.ReLU(), "ReLU with no parameter at all"),
        (nn.LayerNorm(4), "normalisation"),
        (nn.Linear(3, 3, device="meta"), "meta device"),
        (nn.Sequential(*(nn.PReLU() for _ in range(5))), "and 2 more"),
    ],
)
def test_a_model_without_a_matrix_is_refused_naming_what_was_looked_for(model, said):
    with pytest.raises(ValueError, match="two or more dimensions") as caught:
        find_layers(model)
    assert said in str(caught.value)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        find_layers([torch.ones(2, 2)])


def test_the_report_names_every_tensor_and_adds_up():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2).requires_grad_(False))
    coverage = find_layers(model)
    table = str(coverage)
    assert all(name in table for name, _ in model.named_parameters())
    assert coverage.summary in table
    assert coverage.summary.startswith("2 layers measured, 1 of them can be enforced; 18 of 29")
    assert not any(line.endswith(" ") for line in table.splitlines())


def everything() -> nn.Module:
    norm = nn.utils.parametrizations
    return nn.ModuleDict(
        {
            "tied": Tied(),
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(3, 4),
            "conv": nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="reflect"),
            "up": nn.ConvTranspose2d(4, 2, 3),
            "weight_norm": norm.weight_norm(nn.Linear(3, 3)),
            "spectral_norm": norm.spectral_norm(nn.Linear(3, 3)),
            "orthogonal": norm.orthogonal(nn.Linear(3, 3)),
            "batch_norm": nn.BatchNorm1d(3),
        }
    )


@pytest.mark.parametrize("conv", ["reshape", "operator"])
def test_looking_and_measuring_leave_the_model_as_it_was(conv):
    model = everything().train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    for layer in find_layers(model, conv=conv).layers:
        layer.operator().matmul(torch.ones(layer.fan_in, 1))
        layer.weight()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    everything().load_state_dict(after, strict=True)


def test_a_deep_copy_has_layers_of_its_own():
    model = everything()
    layers = find_layers(model).layers
    twins = find_layers(copy.deepcopy(model)).layers
    for layer, twin in zip(layers, twins, strict=True):
        assert layer.name == twin.name
        assert layer.weight().data_ptr() != twin.weight().data_ptr() or not layer.writable
        assert torch.equal(dense(layer), dense(twin))


def test_a_layer_follows_weights_that_are_assigned_anew():
    model = nn.Sequential(nn.Linear(3, 3), nn.MultiheadAttention(4, 2))
    layers = find_layers(model).layers
    fresh = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    assert_measures(layers[0], fresh["0.weight"])
    assert_measures(layers[2], fresh["1.in_proj_weight"][4:8])
    assert_scales(layers[0], [])
    assert torch.equal(model[0].weight, layers[0].weight())


def test_a_layer_follows_a_module_that_is_replaced():
    model = nn.Sequential(nn.Linear(3, 3))
    layer = only(model)
    model[0] = nn.Linear(3, 3)
    assert_measures(layer, model[0].weight)


def test_a_layer_that_is_gone_says_so():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    layer = named(find_layers(model))["b.weight"]
    model["b"] = nn.Linear(3, 5)
    for look in (layer.weight, layer.operator):
        with pytest.raises(
            LookupError, match=r"'b.weight' must have the shape \(3, 3\), got \(5, 3\)"
        ):
            look()
    del model["b"]
    for look in (layer.weight, layer.operator):
        with pytest.raises(LookupError, match=r"'b.weight' must still be in the model"):
            look()


def test_layers_do_not_keep_replaced_weights_alive():
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    coverage = find_layers(model)
    old = [weakref.ref(model[0].weight), weakref.ref(model[1].parametrizations.weight.original1)]
    model[0], model[1] = nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    gc.collect()
    assert [ref() for ref in old] == [None, None]
    assert len(coverage.layers) == 2


def test_names_are_those_of_the_model_under_a_wrapper_too():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = Wrapper(nn.Sequential(nn.Linear(3, 3)))
    layer = only(model)
    assert layer.name in model.module.state_dict()
    assert layer.names == ("0.weight", "module.0.weight"), "patterns may use either"
    assert torch.equal(layer.weight(), model.module[0].weight)


@pytest.mark.parametrize(
    "part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_what_wrappers_add_to_a_path_is_in_no_name(part):
    inner = nn.Module()
    inner.add_module(part, nn.Linear(3, 3))
    model = nn.ModuleDict({"block": inner, "module": nn.Linear(2, 2)})
    assert [layer.name for layer in find_layers(model).layers] == ["block.weight", "module.weight"]


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning"
)  # raised by importing the compiler
def test_a_compiled_model_has_the_names_of_the_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    assert _names(find_layers(torch.compile(model))) == _names(find_layers(model))


def test_two_weights_never_share_a_name():
    wrapper = nn.Module()
    wrapper.add_module("module", nn.Linear(3, 3))
    model = nn.Module()
    model.add_module("a", wrapper)  # a.module.weight, canonically a.weight
    model.a.register_parameter("weight", nn.Parameter(torch.randn(3, 3)))
    assert sorted(_names(find_layers(model))) == ["a.module.weight", "a.weight"]


def _names(coverage):
    return [layer.name for layer in coverage.layers]


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(32, 64)
        self.A_log = nn.Parameter(torch.arange(1, 17.0).log().repeat(64, 1))


class WindowAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.relative_position_bias_table = nn.Parameter(torch.randn(169, 4))


class BiasedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 8, 6))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(4, 6))


class ColumnParallelLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))


class PositionBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))


@pytest.mark.parametrize(
    ("module", "linear", "other"),
    [
        (StateSpace(), {"in_proj.weight"}, {"A_log"}),
        (WindowAttention(), {"qkv.weight"}, {"relative_position_bias_table"}),
        (BiasedExperts(), {f"gate_up_proj[{e}]" for e in range(4)}, {"gate_up_proj_bias"}),
        (ColumnParallelLinear(), {"weight"}, set()),
        (PositionBias(), set(), {"weight"}),
        (nn.ParameterDict({"pos_embed": torch.randn(1, 9, 4)}), set(), {"pos_embed"}),
    ],
)
def test_what_is_not_known_to_be_a_linear_map_is_marked(module, linear, other):
    layers = find_layers(module).layers
    assert {layer.name for layer in layers if layer.linear} == linear
    unknown = [layer for layer in layers if not layer.linear]
    assert {layer.name for layer in unknown} == other
    assert all("not known to be a linear map" in layer.note for layer in unknown)


def test_rows_marked_as_a_share_of_a_weight_are_skipped():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.tensor_model_parallel = True
    assert _names(find_layers(model)) == ["1.weight"]
    assert "sharded" in find_layers(model).skipped[0].reason
