"""Transformer layers for a machine without a GPU: the reference that Transformer Engine is compared with.

All of Megatron's local layers, but for two: an RMSNorm that knows of sequence parallelism, and an attention that takes packed
documents.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from dasd_megatron.training.packed import PackedDocuments

# Transformer Engine fuses a norm with the projection behind it; checkpoints carry its names, so that they move between the two.
CHECKPOINT_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


class ReferenceRMSNorm(torch.nn.RMSNorm):
    """Torch's RMSNorm, its weight marked for the gradient reduction over tensor-parallel ranks (TENorm does the same)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class ReferenceAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention within each document of a pack (in place of TEDotProductAttention, format `thd`).

    Documents of similar length are attended to together, right-padded: under a causal mask padding behind a document
    changes none of its tokens. Time and memory grow with the sum of squared document lengths.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedDocuments | None = None,
    ) -> torch.Tensor:
        """query [tokens, heads, head_dim], key and value [tokens, groups, head_dim] -> [tokens, heads * head_dim]."""
        assert packed_seq_params is not None, "the trainer packs every batch"
        outputs, places = [], []
        for group in packed_seq_params.groups:
            q, k, v = (tensor[group.gather].transpose(1, 2) for tensor in (query, key, value))
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            outputs.append(attended.transpose(1, 2)[group.valid])
            places.append(group.gather[group.valid])
        inverse = torch.cat(places).argsort()
        return torch.cat(outputs)[inverse].flatten(1)


class ReferenceSpecProvider(LocalSpecProvider):  # type: ignore[misc]
    """Megatron's BackendSpecProvider for the CPU."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        """See BackendSpecProvider."""
        return ReferenceRMSNorm

    def core_attention(self) -> type:
        """See BackendSpecProvider."""
        return ReferenceAttention


def reference_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage."""
    backend = ReferenceSpecProvider()
    qk_norm = ReferenceRMSNorm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=backend.column_parallel_linear(),
        core_attention=backend.core_attention(),
        linear_proj=backend.row_parallel_linear(),
        q_layernorm=qk_norm,
        k_layernorm=qk_norm,
    )
    layer = TransformerLayerSubmodules(
        input_layernorm=ReferenceRMSNorm,
        self_attention=ModuleSpec(
            module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=ReferenceRMSNorm,
        mlp=get_mlp_module_spec_for_backend(backend=backend),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=CHECKPOINT_KEYS,
    )
    spec = ModuleSpec(module=TransformerLayer, submodules=layer)
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=ReferenceRMSNorm)
