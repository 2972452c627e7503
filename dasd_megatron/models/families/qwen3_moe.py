"""Qwen3-MoE: its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.models.families.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING,
    FIXED,
    HEAD,
    IGNORED,
    LAYER,
    MEGATRON_LAYER,
    QK_NORMS,
    USED,
)
from dasd_megatron.models.parameter_mapping import DirectMapping, GateUpMapping, ModelFamily, ParamMapping

EXPERT = LAYER + "mlp.experts.{expert}."
MEGATRON_EXPERT = MEGATRON_LAYER + "mlp.experts.local_experts.{expert}."
EXPERT_TENSORS: tuple[ParamMapping, ...] = (
    DirectMapping(MEGATRON_LAYER + "pre_mlp_layernorm.weight", LAYER + "post_attention_layernorm.weight", ("hidden",)),
    DirectMapping(MEGATRON_LAYER + "mlp.router.weight", LAYER + "mlp.gate.weight", ("experts", "hidden")),
    GateUpMapping(MEGATRON_EXPERT + "linear_fc1.weight", EXPERT + "gate_proj.weight", EXPERT + "up_proj.weight"),
    DirectMapping(MEGATRON_EXPERT + "linear_fc2.weight", EXPERT + "down_proj.weight", ("hidden", "ffn_hidden_size")),
)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "qk_layernorm": True,
        "num_moe_experts": config.get("num_experts") or config["num_local_experts"],
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_router_topk": config["num_experts_per_tok"],
        # Probabilities are those of all experts, or renormalised over the chosen ones (a softmax after the choice).
        "moe_router_pre_softmax": not config.get("norm_topk_prob", False),
    }


QWEN3_MOE = ModelFamily(
    architecture="Qwen3MoeForCausalLM",
    used=(
        *USED,
        "num_experts",
        "num_local_experts",  # what transformers 5 writes for num_experts
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "router_aux_loss_coef",
    ),
    # Every layer must be a mixture of experts.
    fixed={**FIXED, "decoder_sparse_step": (1,), "mlp_only_layers": ()},
    ignored=(*IGNORED, "output_router_logits"),
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *QK_NORMS, *EXPERT_TENSORS, *HEAD),
    traits={"qk_norm": True},
    ffn_field="moe_intermediate_size",
    head_dim_given=True,
)
