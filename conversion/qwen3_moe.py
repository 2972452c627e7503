"""Qwen3-MoE: its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.decoder import (
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
from conversion.mapping import Entry, Family, GateUp, Plain

EXPERT = LAYER + "mlp.experts.{expert}."
MEGATRON_EXPERT = MEGATRON_LAYER + "mlp.experts.local_experts.{expert}."
EXPERT_TENSORS: tuple[Entry, ...] = (
    Plain(MEGATRON_LAYER + "pre_mlp_layernorm.weight", LAYER + "post_attention_layernorm.weight", ("hidden",)),
    Plain(MEGATRON_LAYER + "mlp.router.weight", LAYER + "mlp.gate.weight", ("experts", "hidden")),
    GateUp(MEGATRON_EXPERT + "linear_fc1.weight", EXPERT + "gate_proj.weight", EXPERT + "up_proj.weight"),
    Plain(MEGATRON_EXPERT + "linear_fc2.weight", EXPERT + "down_proj.weight", ("hidden", "feed_forward")),
)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """See Family."""
    return {
        "qk_layernorm": True,
        "num_moe_experts": config.get("num_experts") or config["num_local_experts"],
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_router_topk": config["num_experts_per_tok"],
        # Probabilities are those of all experts, or renormalised over the chosen ones (a softmax after the choice).
        "moe_router_pre_softmax": not config.get("norm_topk_prob", False),
    }


QWEN3_MOE = Family(
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
    head_dim_given=True,
)
