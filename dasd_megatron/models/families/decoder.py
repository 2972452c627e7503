"""What the families share: fields of config.json, and tensors, of a decoder with RMSNorm, rotary embedding and gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.models.parameter_mapping import DirectMapping, GateUpMapping, ParamMapping, QKVMapping

DEFAULT_EPSILON = 1e-6  # of norms, in transformers
LAYER = "model.layers.{layer}."
MEGATRON_LAYER = "decoder.layers.{layer}."
ATTENTION = LAYER + "self_attn."
MEGATRON_ATTENTION = MEGATRON_LAYER + "self_attention."

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
    "rope_scaling",
    "tie_word_embeddings",
    "max_position_embeddings",
)
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "use_sliding_window": (False,),
    "layer_types": ("full_attention",),
    "quantization_config": (None,),
}
IGNORED = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "initializer_range",
    "attn_implementation",
    "_name_or_path",
    "_model_name_or_path",
    "transformers.js_config",
    # Act only where use_sliding_window is true, which is refused.
    "sliding_window",
    "max_window_layers",
)

EMBEDDING = DirectMapping("embedding.word_embeddings.weight", "model.embed_tokens.weight", ("vocabulary", "hidden"))
HEAD: tuple[ParamMapping, ...] = (
    DirectMapping("decoder.final_layernorm.weight", "model.norm.weight", ("hidden",)),
    DirectMapping("output_layer.weight", "lm_head.weight", ("vocabulary", "hidden"), untied_only=True),
)
# Transformer Engine fuses a norm with the projection behind it; the fused names are the ones in checkpoints.
ATTENTION_TENSORS: tuple[ParamMapping, ...] = (
    DirectMapping(MEGATRON_ATTENTION + "linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight", ("hidden",)),
    QKVMapping(
        MEGATRON_ATTENTION + "linear_qkv.weight",
        ATTENTION + "q_proj.weight",
        ATTENTION + "k_proj.weight",
        ATTENTION + "v_proj.weight",
    ),
    DirectMapping(MEGATRON_ATTENTION + "linear_proj.weight", ATTENTION + "o_proj.weight", ("hidden", "query_columns")),
)
QKV_BIAS = QKVMapping(
    MEGATRON_ATTENTION + "linear_qkv.bias",
    ATTENTION + "q_proj.bias",
    ATTENTION + "k_proj.bias",
    ATTENTION + "v_proj.bias",
    columns=(),
)
QK_NORMS: tuple[ParamMapping, ...] = (
    DirectMapping(MEGATRON_ATTENTION + "q_layernorm.weight", ATTENTION + "q_norm.weight", ("head_dim",)),
    DirectMapping(MEGATRON_ATTENTION + "k_layernorm.weight", ATTENTION + "k_norm.weight", ("head_dim",)),
)
MLP_TENSORS: tuple[ParamMapping, ...] = (
    DirectMapping(
        MEGATRON_LAYER + "mlp.linear_fc1.layer_norm_weight", LAYER + "post_attention_layernorm.weight", ("hidden",)
    ),
    GateUpMapping(
        MEGATRON_LAYER + "mlp.linear_fc1.weight", LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"
    ),
    DirectMapping(
        MEGATRON_LAYER + "mlp.linear_fc2.weight", LAYER + "mlp.down_proj.weight", ("hidden", "ffn_hidden_size")
    ),
)
