"""Transformer layers for a machine without a GPU: the reference that Transformer Engine is compared with.

All of Megatron's local layers, but for three: an RMSNorm that knows of sequence parallelism, an attention that takes packed
documents, and experts' output projection.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from dasd_megatron.cpu_backend.attention import ReferenceAttention, ReferenceSinkAttention

# Transformer Engine fuses a norm with the projection behind it; checkpoints have its names, so that they move between the
# two. The norm before a mixture of experts is no part of a projection in either.
ATTENTION_KEYS = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
MLP_KEYS = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}


def checkpoint_keys(config: TransformerConfig) -> dict[str, str]:
    """Parts of parameter names in these layers, and what they are in checkpoints."""
    return ATTENTION_KEYS if config.num_moe_experts else ATTENTION_KEYS | MLP_KEYS


class ReferenceRMSNorm(torch.nn.RMSNorm):
    """Torch's RMSNorm, its weight marked for the gradient reduction over tensor-parallel ranks (TENorm does the same)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class ReferenceSeparateRMSNorm(ReferenceRMSNorm):
    """A norm that Transformer Engine, too, keeps apart from projections: it has an (empty) extra state in checkpoints."""

    def get_extra_state(self) -> None:
        """Nothing; Megatron's own layers on the CPU do the same."""

    def set_extra_state(self, state: Any) -> None:
        """Transformer Engine's means nothing here."""


class ReferenceExpertOutput(RowParallelLinear):  # type: ignore[misc]
    """An expert's second projection: Megatron's, fixed for biases where experts aren't split over tensor-parallel ranks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # No reduction, which would do nothing but hand over a view: the expert adds its bias in place.
        self.explicit_expert_comm = True
        if self.bias is not None:
            # Its gradient is reduced over the expert's data-parallel ranks; over tensor-parallel ones it would be once more.
            self.bias.sequence_parallel = False


class ReferenceSpecProvider(LocalSpecProvider):  # type: ignore[misc]
    """Megatron's BackendSpecProvider for the CPU."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        return ReferenceSeparateRMSNorm

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool) -> Any:
        experts = super().grouped_mlp_modules(moe_use_grouped_gemm)
        experts.keywords["submodules"].linear_fc2 = ReferenceExpertOutput
        return experts


def cpu_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """One transformer layer."""
    backend = ReferenceSpecProvider()
    qk_norm = ReferenceSeparateRMSNorm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=backend.column_parallel_linear(),
        core_attention=ReferenceSinkAttention if config.softmax_type == "learnable" else ReferenceAttention,
        linear_proj=backend.row_parallel_linear(),
        q_layernorm=qk_norm,
        k_layernorm=qk_norm,
    )
    mlp = get_mlp_module_spec_for_backend(backend=backend, num_experts=config.num_moe_experts)
    layer = TransformerLayerSubmodules(
        input_layernorm=ReferenceRMSNorm,
        self_attention=ModuleSpec(
            module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=ReferenceSeparateRMSNorm if config.num_moe_experts else ReferenceRMSNorm,
        mlp=mlp,
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=checkpoint_keys(config),
    )
    return ModuleSpec(module=TransformerLayer, submodules=layer)


def cpu_block_spec(config: TransformerConfig, layer: ModuleSpec, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage's model chunk."""
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=ReferenceSeparateRMSNorm)
