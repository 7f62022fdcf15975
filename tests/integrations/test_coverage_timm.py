"""What SNCallback enforces in models of timm, against lists of linear maps made by hand."""

import pytest
import timm_beside_cpu
import torch
from coverage_cases import Written, enforced
from fused_cases import assert_attention, assert_gated, fused_modules, prepared

timm = timm_beside_cpu.timm()

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32}
SMALL_14 = SMALL | {"img_size": 28}
STAGES = {"depths": (1, 1), "embed_dim": 8, "num_heads": (2, 2)}

HEAD = "head.weight patch_embed.proj.weight "
QKV = "*.attn.qkv.weight{q,k,v} *.attn.proj.weight "
BLOCKS = HEAD + QKV + "*.mlp.fc?.weight "
GATED = HEAD + QKV + "*.mlp.fc1.weight{gate,up} *.mlp.fc2.weight"

MODELS = {
    "test_resnet": ({}, Written("*conv*.weight layer?.*.downsample.*.weight fc.weight")),
    "test_vit": ({}, Written(BLOCKS, "pos_embed")),
    "vit_giant_patch14_dinov2": (SMALL_14, Written(GATED, "pos_embed")),
    "vit_so400m_patch14_siglip_224": (
        SMALL_14,
        Written(
            HEAD + "blocks.*.qkv.weight{q,k,v} blocks.*.attn.proj.weight *.mlp.fc?.weight "
            "attn_pool.q.weight attn_pool.kv.weight attn_pool.proj.weight",
            "pos_embed",
        ),
    ),
    "vit_relpos_small_patch16_224": (SMALL, Written(BLOCKS)),
    "vit_small_patch16_dinov3": (SMALL, Written(BLOCKS, "reg_token")),
    "beit_base_patch16_224": (SMALL, Written(BLOCKS, "*.relative_position_bias_table")),
    "eva02_tiny_patch14_224": (SMALL_14, Written(GATED, "pos_embed")),
    "cait_xxs24_224": (
        SMALL,
        Written(
            BLOCKS + "*.attn.proj_[lw].weight blocks_token_only.*.attn.[qkv].weight", "pos_embed"
        ),
    ),
    "xcit_nano_12_p16_224": (
        SMALL,
        Written(
            "head.weight patch_embed.proj.*.weight pos_embed.token_projection.weight "
            "*.mlp.fc?.weight "
            + QKV
            + "*.local_mp.conv?.weight cls_attn_blocks.*.attn.[qkv].weight"
        ),
    ),
    "swin_tiny_patch4_window7_224": (
        STAGES | {"img_size": 56},
        Written(
            "head.fc.weight patch_embed.proj.weight *.downsample.reduction.weight *.mlp.fc?.weight "
            + QKV,
            "*.relative_position_bias_table",
        ),
    ),
    "swinv2_tiny_window8_256": (
        STAGES | {"img_size": 64},
        Written(
            "head.fc.weight patch_embed.proj.weight *.downsample.reduction.weight "
            "*.attn.cpb_mlp.*.weight *.mlp.fc?.weight " + QKV
        ),
    ),
    "davit_tiny": (
        {"depths": (1, 1), "embed_dims": (16, 16), "num_heads": (2, 2)},
        # Its attention over channels uses q as others use v: it stays whole.
        Written(
            "head.fc.weight stem.conv.weight *.downsample.conv.weight *.cpe?.proj.weight "
            "*.mlp.fc?.weight *.attn.proj.weight *.blocks.?.1.attn.qkv.weight "
            "*.blocks.?.0.attn.qkv.weight{q,k,v}"
        ),
    ),
    "test_convnext": (
        {},
        Written(
            "stem.*.weight *.conv_dw.weight *.mlp.fc?.weight *.downsample.*.weight head.fc.weight"
        ),
    ),
    "test_efficientnet": ({}, Written("conv_*.weight blocks.*.conv*.weight classifier.weight")),
    "test_mambaout": (
        {},
        # Of fc1 a half is a gate, the rest goes two ways: it stays whole.
        Written(
            "stem.conv?.weight *.blocks.*.fc?.weight *.blocks.*.conv.weight "
            "*.downsample.conv.weight head.pre_logits.fc.weight head.fc.weight"
        ),
    ),
    "test_nfnet": (
        {},
        # Standardised at each forward, but for those of its attention over channels.
        Written("*.attn_last.fc?.weight head.fc.weight", "*conv*.weight *conv*.gain"),
    ),
    "test_byobnet": ({}, Written("*conv*.weight *.attn*.fc?.weight head.fc.weight")),
    "mobilenetv3_small_050": ({}, Written("conv_*.weight blocks.*.conv*.weight classifier.weight")),
    "mobilevit_xxs": (
        {},
        Written("*conv*.weight " + QKV + "*.mlp.fc?.weight head.fc.weight"),
    ),
    "edgenext_xx_small": (
        {},
        Written(
            "stem.0.weight *.conv_dw.weight *.convs.*.weight *.mlp.fc?.weight "
            "*.downsample.*.weight *.pos_embd.token_projection.weight "
            "*.xca.qkv.weight{q,k,v} *.xca.proj.weight head.fc.weight"
        ),
    ),
    "densenet121": (
        {"growth_rate": 4, "block_config": (1, 1)},
        Written("features.*conv*.weight classifier.weight"),
    ),
    "levit_128s": (
        {},
        # q, k and v take turns head by head.
        Written("*.linear.weight", "*.attention_biases"),
    ),
    "botnet26t_256": (
        {},
        Written("*conv*.weight *.self_attn.qkv.weight head.fc.weight", "*.height_rel *.width_rel"),
    ),
}


def built(name: str) -> torch.nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=5, **MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_linear_maps_and_nothing_else_are_enforced(name):
    model = built(name)
    assert enforced(model) == MODELS[name][1].expected(model)


@pytest.mark.parametrize(
    "name",
    ["vit_giant_patch14_dinov2", "vit_relpos_small_patch16_224", "vit_small_patch16_dinov3",
     "beit_base_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224", "xcit_nano_12_p16_224",
     "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "davit_tiny", "edgenext_xx_small"],
)  # fmt: skip
def test_the_parts_of_a_fused_weight_do_what_their_names_say(name):
    model = prepared(built(name))
    size = MODELS[name][0].get("img_size", 64)
    for parts, ask in fused_modules(model, x=torch.randn(1, 3, size, size)):
        assert_attention(parts, ask) if "q" in parts else assert_gated(parts, ask)
