"""What SNCallback enforces in models of transformers, against lists of linear maps made by hand."""

import pytest
import torch
from coverage_cases import Written, enforced
from fused_cases import assert_attention, assert_gated, fused_modules, prepared

transformers = pytest.importorskip(
    "transformers", reason="install the extra [frameworks] to test transformers"
)

DECODER = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER_DECODER = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
GPT = {
    "vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2, "num_hidden_layers": 2,
    "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}

SELF = "embed_tokens.weight layers.*.self_attn.[qkvo]_proj.weight "
GATED = (
    SELF + "layers.*.mlp.gate_proj.weight layers.*.mlp.up_proj.weight layers.*.mlp.down_proj.weight"
)
EXPERTS = "layers.*.{}experts.gate_up_proj{{0,1}}{{gate,up}} layers.*.{}experts.down_proj{{0,1}} "
BERT = (
    "*.attention.self.*.weight *.attention.output.dense.weight *.intermediate.dense.weight "
    "encoder.layer.[0-9].output.dense.weight embeddings.word_embeddings.weight "
)
VISION_MAPS = "*.projection.weight *.attention.[qkvo]_proj.weight *.mlp.fc?.weight "


def experts(block: str) -> str:
    return SELF + EXPERTS.format(block, block)


MODELS = {
    "llama": (DECODER, Written(GATED)),
    "mistral": (DECODER, Written(GATED)),
    "qwen2": (DECODER, Written(GATED)),
    "gemma2": (DECODER, Written(GATED)),
    "phi": (
        DECODER,
        Written(
            "embed_tokens.weight layers.*.self_attn.[qkv]_proj.weight "
            "layers.*.self_attn.dense.weight layers.*.mlp.fc?.weight"
        ),
    ),
    "phi3": (
        DECODER,
        Written(
            "embed_tokens.weight layers.*.self_attn.o_proj.weight layers.*.mlp.down_proj.weight "
            "layers.*.self_attn.qkv_proj.weight{q,k,v} layers.*.mlp.gate_up_proj.weight{gate,up}"
        ),
    ),
    "glm": (
        DECODER,
        Written(SELF + "*.mlp.gate_up_proj.weight{gate,up} *.mlp.down_proj.weight"),
    ),
    "glm4": (
        DECODER,
        Written(SELF + "*.mlp.gate_up_proj.weight{gate,up} *.mlp.down_proj.weight"),
    ),
    "mixtral": (
        DECODER | {"num_local_experts": 2},
        Written(experts("mlp.") + "*.mlp.gate.weight"),
    ),
    "qwen2_moe": (
        DECODER | MOE | {"shared_expert_intermediate_size": 8},
        Written(
            experts("mlp.") + "*.mlp.gate.weight *.shared_expert.*_proj.weight "
            "*.mlp.shared_expert_gate.weight"
        ),
    ),
    "qwen3_moe": (DECODER | MOE, Written(experts("mlp.") + "*.mlp.gate.weight")),
    "gpt_oss": (
        DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1},
        Written(experts("mlp.") + "*.mlp.router.weight", "*_proj_bias"),
    ),
    "llama4_text": (
        DECODER | {"num_local_experts": 2, "intermediate_size_mlp": 24},
        Written(
            experts("feed_forward.") + "*.router.weight *.feed_forward.shared_expert.*_proj.weight"
        ),
    ),
    "deepseek_v3": (
        DECODER
        | {
            "n_routed_experts": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 0,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 8,
            "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
            "num_key_value_heads": 4,
        },
        Written(
            EXPERTS.format("mlp.", "mlp.") + "embed_tokens.weight *.mlp.gate.weight "
            "*.self_attn.q_[ab]_proj.weight *.self_attn.kv_*.weight *.self_attn.o_proj.weight "
            "*.mlp.shared_experts.*_proj.weight"
        ),
    ),
    "jetmoe": (
        DECODER | {"num_local_experts": 2},
        Written(
            "embed_tokens.weight *.router.layer.weight *.kv_proj.weight "
            "*.mlp.input_linear.weight{0,1}{gate,up} *.mlp.output_linear.weight{0,1} "
            "*.self_attention.experts.input_linear.weight{0,1} "
            "*.self_attention.experts.output_linear.weight{0,1}"
        ),
    ),
    "gpt2": (
        GPT | {"n_embd": 16, "n_positions": 32, "add_cross_attention": True},
        Written(
            "wte.weight h.*.attn.c_attn.weight{q,k,v} h.*.crossattention.c_attn.weight{k,v} "
            "*.q_attn.weight *.c_proj.weight h.*.mlp.c_fc.weight",
            "wpe.weight",
        ),
    ),
    "gpt_neox": (
        DECODER,
        # q, k and v take turns head by head.
        Written("embed_in.weight *.query_key_value.weight *.dense.weight *.mlp.dense_*.weight"),
    ),
    "bloom": (GPT, Written("word_embeddings.weight *.query_key_value.weight *.dense*.weight")),
    "falcon": (GPT, Written("word_embeddings.weight *.query_key_value.weight *.dense*.weight")),
    "opt": (
        DECODER | {"ffn_dim": 24, "word_embed_proj_dim": 16},
        Written(
            "decoder.embed_tokens.weight *.self_attn.*_proj.weight *.fc?.weight",
            "decoder.embed_positions.weight",
        ),
    ),
    "mamba": (
        GPT | {"state_size": 4},
        Written(
            "embeddings.weight *.mixer.conv1d.weight *.mixer.in_proj.weight{up,gate} "
            "*.mixer.x_proj.weight *.mixer.dt_proj.weight *.mixer.out_proj.weight",
            "*.mixer.A_log",
        ),
    ),
    "mamba2": (
        GPT | {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1},
        Written(
            "embeddings.weight *.mixer.conv1d.weight *.mixer.in_proj.weight *.mixer.out_proj.weight"
        ),
    ),
    "t5": (
        {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
        Written(
            "shared.weight *Attention.[qkvo].weight *.DenseReluDense.w?.weight",
            "*.relative_attention_bias.weight",
        ),
    ),
    "bart": (
        ENCODER_DECODER,
        Written("shared.weight *_attn.*_proj.weight *.fc?.weight", "*.embed_positions.weight"),
    ),
    "whisper": (
        ENCODER_DECODER
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        Written(
            "encoder.conv?.weight decoder.embed_tokens.weight *_attn.*_proj.weight *.fc?.weight",
            "*.embed_positions.weight",
        ),
    ),
    "bert": (
        DECODER,
        Written(
            BERT + "embeddings.token_type_embeddings.weight pooler.dense.weight",
            "embeddings.position_embeddings.weight",
        ),
    ),
    "deberta-v2": (
        DECODER
        | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        Written(BERT, "embeddings.position_embeddings.weight encoder.rel_embeddings.weight"),
    ),
    "modernbert": (
        DECODER | {"cls_token_id": 1, "sep_token_id": 2},
        Written(
            "embeddings.tok_embeddings.weight *.Wqkv.weight{q,k,v} *.Wi.weight{gate,up} *.Wo.weight"
        ),
    ),
    "vit": (
        VISION,
        Written(
            VISION_MAPS + "pooler.dense.weight",
            "embeddings.position_embeddings",
        ),
    ),
    "beit": (
        VISION | {"use_relative_position_bias": True},
        Written(
            VISION_MAPS,
            "*.relative_position_bias_table",
        ),
    ),
    "swin": (
        {
            "image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
            "num_heads": [2, 2], "window_size": 2,
        },
        Written(
            VISION_MAPS + "*.reduction.weight",
            "*.relative_position_bias_table",
        ),
    ),
    "bit": (
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_groups": 2},
        Written("", "*.conv*.weight"),
    ),
    "clip": (
        {
            "text_config": DECODER | {"projection_dim": 8},
            "vision_config": VISION,
            "projection_dim": 8,
        },
        Written(
            "text_model.embeddings.token_embedding.weight *.patch_embedding.weight "
            "*.self_attn.*_proj.weight *.mlp.fc?.weight *_projection.weight",
            "*.position_embedding.weight",
        ),
    ),
    "wav2vec2": (
        {
            "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "conv_dim": (8, 8), "conv_kernel": (3, 3),
            "conv_stride": (2, 2), "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        Written(
            "*.conv.weight feature_projection.projection.weight *.attention.*_proj.weight "
            "*.feed_forward.*_dense.weight"
        ),
    ),
}  # fmt: skip


def built(kind: str) -> torch.nn.Module:
    config = transformers.CONFIG_MAPPING[kind](**MODELS[kind][0])
    return transformers.AutoModel.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("kind", MODELS)
def test_linear_maps_and_nothing_else_are_enforced(kind):
    model = built(kind)
    assert enforced(model) == MODELS[kind][1].expected(model)


# gpt-oss adds 1 to what its gate opens, Mamba convolves it.
@pytest.mark.parametrize(
    "kind",
    ["phi3", "glm", "glm4", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4_text",
     "deepseek_v3", "jetmoe", "mamba", "gpt2", "modernbert"],
)  # fmt: skip
def test_the_parts_of_a_fused_weight_do_what_their_names_say(kind):
    model = prepared(built(kind))
    tokens = torch.arange(10).reshape(2, 5) + 3
    for parts, ask in fused_modules(model, input_ids=tokens, use_cache=False):
        if "q" in parts:
            assert_attention(parts, ask)
        elif "gate" in parts:
            assert_gated(parts, ask, linear=kind not in ("gpt_oss", "mamba"))
