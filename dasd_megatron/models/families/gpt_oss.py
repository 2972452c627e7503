"""gpt-oss: its Hugging Face config and tensors in Megatron's terms.

Attention has sinks (a learnable logit of each head that takes part in the softmax and has no value), and in layers of the
kind `sliding_attention` each token sees itself and the `sliding_window` - 1 tokens before it. Every projection has a bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dasd_megatron.models.families.decoder import (
    ATTENTION,
    ATTENTION_TENSORS,
    EMBEDDING,
    FIXED,
    HEAD,
    IGNORED,
    LAYER,
    MEGATRON_ATTENTION,
    MEGATRON_LAYER,
    QKV_BIAS,
    USED,
)
from dasd_megatron.models.parameter_mapping import (
    DirectMapping,
    InterleavedGateUpMapping,
    ModelFamily,
    ParamMapping,
    TransposedMapping,
)

SLIDING, FULL = "sliding_attention", "full_attention"
MLP = LAYER + "mlp."
EXPERTS = MLP + "experts."
MEGATRON_MLP = MEGATRON_LAYER + "mlp."
MEGATRON_EXPERT = MEGATRON_MLP + "experts.local_experts.{expert}."
ATTENTION_EXTRAS: tuple[ParamMapping, ...] = (
    QKV_BIAS,
    DirectMapping(MEGATRON_ATTENTION + "linear_proj.bias", ATTENTION + "o_proj.bias", ("hidden",)),
    DirectMapping(MEGATRON_ATTENTION + "core_attention.softmax_offset", ATTENTION + "sinks", ("heads",)),
)
EXPERT_TENSORS: tuple[ParamMapping, ...] = (
    DirectMapping(MEGATRON_LAYER + "pre_mlp_layernorm.weight", LAYER + "post_attention_layernorm.weight", ("hidden",)),
    DirectMapping(MEGATRON_MLP + "router.weight", MLP + "router.weight", ("experts", "hidden")),
    DirectMapping(MEGATRON_MLP + "router.bias", MLP + "router.bias", ("experts",)),
    InterleavedGateUpMapping(MEGATRON_EXPERT + "linear_fc1.weight", EXPERTS + "gate_up_proj"),
    InterleavedGateUpMapping(MEGATRON_EXPERT + "linear_fc1.bias", EXPERTS + "gate_up_proj_bias", rows=()),
    TransposedMapping(MEGATRON_EXPERT + "linear_fc2.weight", EXPERTS + "down_proj", ("hidden", "ffn_hidden_size")),
    DirectMapping(MEGATRON_EXPERT + "linear_fc2.bias", EXPERTS + "down_proj_bias", ("hidden",)),
)
# transformers has values of its own where these are missing.
REQUIRED = ("num_local_experts", "num_experts_per_tok", "rms_norm_eps", "layer_types", "sliding_window", "swiglu_limit")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    windowed = [kind == SLIDING for kind in config["layer_types"]]
    return {
        "add_bias_linear": True,
        "softmax_type": "learnable",
        "window_size": (config["sliding_window"] - 1, 0) if any(windowed) else None,
        "window_attn_skip_freq": [int(window) for window in windowed],
        # Sinks under context parallelism: the only exchange that Transformer Engine has them for.
        "cp_comm_type": "a2a",
        "activation_func": "quick_gelu",
        "glu_linear_offset": 1.0,
        "activation_func_clamp_value": config["swiglu_limit"],
        "num_moe_experts": config["num_local_experts"],
        "moe_ffn_hidden_size": config["intermediate_size"],
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_router_pre_softmax": False,  # a softmax over the chosen experts
    }


def problems(config: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in REQUIRED if config.get(name) is None]
    if missing:
        yield f"{', '.join(missing)} missing; GptOssForCausalLM needs them"
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {}), **config}
    if not {"rope_type", "rope_theta"} <= set(settings):
        yield "the kind or base of the rotary embedding is missing: rope_theta, and rope_scaling or rope_parameters"
    kinds, layers = config["layer_types"], config.get("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers:
        yield f"layer_types must name the attention of each of the {layers} layers"
    window, limit = config["sliding_window"], config["swiglu_limit"]
    if not isinstance(window, int) or window < 1:
        yield f"sliding_window must be a positive whole number, not {window!r}"
    if not isinstance(limit, int | float) or limit <= 0:
        yield f"swiglu_limit must be a positive number, not {limit!r}"
    if config.get("experts_per_token", config["num_experts_per_tok"]) != config["num_experts_per_tok"]:
        yield "experts_per_token and num_experts_per_tok differ"
    method = (config.get("quantization_config") or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        yield f"weights quantised by {method!r} aren't supported; only 'mxfp4' is"


GPT_OSS = ModelFamily(
    architecture="GptOssForCausalLM",
    used=(
        *USED,
        "num_local_experts",
        "num_experts_per_tok",
        "experts_per_token",  # the same again, in the published configs
        "sliding_window",
        "swiglu_limit",
        "router_aux_loss_coef",
        "quantization_config",
    ),
    fixed={
        **{name: values for name, values in FIXED.items() if name != "quantization_config"},
        "attention_bias": (True,),
        "layer_types": (SLIDING, FULL),
        "swiglu_alpha": (1.702,),  # Megatron's quick_gelu
    },
    ignored=(
        *(name for name in IGNORED if name != "sliding_window"),
        "initial_context_length",  # rope_scaling says it
        "output_router_logits",
    ),
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *ATTENTION_EXTRAS, *EXPERT_TENSORS, *HEAD),
    traits={"qkv_bias": True, "biases": True, "sinks": True},
    head_dim_given=True,
    problems=problems,
)
