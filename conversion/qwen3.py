"""Qwen3 (dense): its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.mapping import QKV, Family, GateUp, Plain

# Fields of config.json that the Megatron model is built from (see `arguments`).
USED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "tie_word_embeddings",
    "max_position_embeddings",
)
# Fields that change the mathematics, with the only values that are understood.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "use_sliding_window": (False,),
    "sliding_window": (None,),
    "rope_scaling": (None,),
}
# Fields that don't.
IGNORED = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "initializer_range",
    "max_window_layers",
    "layer_types",
    "attn_implementation",
    "_name_or_path",
)

LAYER = "model.layers.{layer}."
MEGATRON_LAYER = "decoder.layers.{layer}."

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    used=USED,
    fixed=FIXED,
    ignored=IGNORED,
    tensors=(
        Plain("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Plain(MEGATRON_LAYER + "self_attention.linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight"),
        QKV(
            MEGATRON_LAYER + "self_attention.linear_qkv.weight",
            LAYER + "self_attn.q_proj.weight",
            LAYER + "self_attn.k_proj.weight",
            LAYER + "self_attn.v_proj.weight",
        ),
        Plain(MEGATRON_LAYER + "self_attention.q_layernorm.weight", LAYER + "self_attn.q_norm.weight"),
        Plain(MEGATRON_LAYER + "self_attention.k_layernorm.weight", LAYER + "self_attn.k_norm.weight"),
        Plain(MEGATRON_LAYER + "self_attention.linear_proj.weight", LAYER + "self_attn.o_proj.weight"),
        Plain(MEGATRON_LAYER + "mlp.linear_fc1.layer_norm_weight", LAYER + "post_attention_layernorm.weight"),
        GateUp(MEGATRON_LAYER + "mlp.linear_fc1.weight", LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
        Plain(MEGATRON_LAYER + "mlp.linear_fc2.weight", LAYER + "mlp.down_proj.weight"),
        Plain("decoder.final_layernorm.weight", "model.norm.weight"),
        Plain("output_layer.weight", "lm_head.weight", untied_only=True),
    ),
)
