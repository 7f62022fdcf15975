"""What a name and a shape are taken for, against what a model says of the same weights."""

import pytest
import torch
from torch import Tensor, nn

from snc_client.audit.formats.stored import Stored
from snc_client.audit.matrices import Part, parts, reason
from snc_client.layers import find_layers


def stored(name: str, *shape: int, dtype: str = "float32") -> Stored:
    def never(first: int, last: int) -> Tensor:
        raise AssertionError("names and shapes must be enough")

    return Stored(name, shape, dtype, never)


def only(name: str, *shape: int) -> Part:
    (part,) = parts(stored(name, *shape))
    return part


@pytest.mark.parametrize(
    ("name", "shape", "kind", "matrix"),
    [
        ("blocks.0.mlp.up.weight", (64, 16), "linear", (64, 16)),
        ("head.weight", (1, 16), "linear", (1, 16)),
        ("model.embed_tokens.weight", (100, 16), "embedding", (100, 16)),
        ("transformer.wte.weight", (100, 16), "embedding", (100, 16)),
        ("pos_embed", (1, 197, 16), "matrix", (197, 16)),
        ("latents", (8, 16), "matrix", (8, 16)),
        ("features.0.weight", (32, 3, 7, 7), "conv", (32, 147)),
        ("features.0.weight", (8, 4, 3, 3, 3), "conv", (8, 108)),
        ("encoder.conv1.weight", (64, 80, 30), "conv", (64, 2400)),
        ("encoder.proj.weight", (64, 80, 3), "conv", (64, 240)),
        ("rnn.weight_hh_l1_reverse", (64, 16), "recurrent", (64, 16)),
        ("q_proj.lora_A.default.weight", (8, 64), "lora", (8, 64)),
    ],
)
def test_a_kind_is_guessed_from_name_and_shape(name, shape, kind, matrix) -> None:
    part = only(name, *shape)
    assert (part.name, part.kind, (part.rows, part.columns)) == (name, kind, matrix)
    assert (part.first, part.last) == (0, shape[0])


@pytest.mark.parametrize("name", ["mlp.experts.down_proj", "block.moe.w1", "anything"])
def test_a_stack_is_one_matrix_per_expert(name: str) -> None:
    found = parts(stored(name, 3, 20, 40))
    assert [part.name for part in found] == [f"{name}[{e}]" for e in range(3)]
    assert {(p.kind, p.rows, p.columns, p.last - p.first) for p in found} == {("expert", 20, 40, 1)}


def test_experts_with_few_inputs_are_still_experts() -> None:
    assert len(parts(stored("moe.router.w", 4, 20, 3))) == 4
    assert len(parts(stored("decoder.conv.w", 4, 20, 300))) == 1


def test_what_is_not_the_norm_of_the_layers_map_is_said() -> None:
    assert "not the convolution" in only("conv.weight", 8, 3, 3, 3).note
    assert "all gates" in only("lstm.weight_ih_l0", 64, 16).note
    assert "fused" in only("h.0.attn.c_attn.weight", 48, 16).note
    assert "one factor" in only("lora_B.weight", 64, 8).note
    assert only("fc.weight", 8, 8).note is None


@pytest.mark.parametrize(
    ("name", "rows", "columns", "turned"),
    [
        ("h.0.attn.c_attn.weight", 16, 48, True),
        ("h.0.attn.c_attn.weight", 48, 16, False),
        ("h.0.mlp.c_fc.weight", 16, 64, True),
        ("h.0.mlp.c_proj.weight", 64, 16, True),
        ("h.0.mlp.c_proj.weight", 16, 64, False),
        ("h.0.attn.c_proj.weight", 16, 16, False),
        ("up.weight", 16, 64, False),
    ],
)
def test_gpt2_as_stored_by_hugging_face_has_its_fans_turned(name, rows, columns, turned) -> None:
    part = only(name, rows, columns)
    fans = (columns, rows) if turned else (rows, columns)
    assert (part.fan_out, part.fan_in) == fans


def test_names_and_fans_are_those_of_the_callback() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(50, 16),
            "attention": nn.MultiheadAttention(16, 4),
            "up": nn.Linear(16, 64),
            "norm": nn.LayerNorm(64),
            "head": nn.Linear(64, 1),
        }
    )
    tensors = [stored(name, *w.shape) for name, w in model.state_dict().items()]
    found = [part for tensor in tensors if not reason(tensor) for part in parts(tensor)]
    assert sorted((p.name, p.fan_out, p.fan_in) for p in found) == sorted(
        (x.name, x.fan_out, x.fan_in) for x in find_layers(model).layers
    )
    skipped = {tensor.name for tensor in tensors if reason(tensor)}
    assert skipped == {x.name for x in find_layers(model).skipped}


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (stored("norm.weight", 64), "a vector"),
        (stored("scale"), "a vector"),
        (stored("cls_token", 1, 1, 64), "a vector in the shape of a matrix"),
        (stored("gate", 64, 1, 1), "a vector in the shape of a matrix"),
        (stored("attn.bias", 1, 1, 64, 64), "mask"),
        (stored("fc.weight", 0, 64), "empty"),
        (stored("experts.w", 4, 0, 3), "empty"),
        (stored("ids", 4, 4, dtype="int64"), "of dtype int64"),
        (stored("packed", 4, 4, dtype="uint8"), "of dtype uint8"),
        (stored("phase", 4, 4, dtype="complex64"), "of dtype complex64"),
        (stored("fc.weight", 4, 4, dtype="float8_e4m3fn"), "its scales lie in another tensor"),
        (Stored("x", (4, 4), "float32", torch.empty, "because"), "because"),
    ],
)
def test_what_is_not_measured_has_its_reason(tensor: Stored, why: str) -> None:
    assert why in reason(tensor)
