"""What SNCallback enforces in the UNet of diffusers, against a list of linear maps made by hand."""

import pytest
import torch
from coverage_cases import Written, enforced
from fused_cases import assert_gated, fused_modules, prepared

diffusers = pytest.importorskip(
    "diffusers", reason="install the extra [frameworks] to test diffusers"
)

UNET = Written(
    "conv_in.weight conv_out.weight time_embedding.linear_?.weight *.resnets.*.conv*.weight "
    "*.time_emb_proj.weight *.downsamplers.?.conv.weight *.upsamplers.?.conv.weight "
    "*.proj_in.weight *.proj_out.weight *.attn?.to_[qkv].weight *.attn?.to_out.0.weight "
    "*.ff.net.0.proj.weight{up,gate} *.ff.net.2.weight"
)


def unet() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def test_linear_maps_and_nothing_else_are_enforced():
    model = unet()
    assert enforced(model) == UNET.expected(model)


def test_the_gates_of_its_feed_forwards_are_what_their_names_say():
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": torch.randn(1, 3, 8),
    }
    for parts, ask in fused_modules(prepared(unet()), **inputs):
        assert_gated(parts, ask)
