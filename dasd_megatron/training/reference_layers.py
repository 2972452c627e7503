"""Transformer layers for a machine without a GPU: the reference that Transformer Engine is compared with.

All of Megatron's local layers, but for two: an RMSNorm that knows of sequence parallelism, and an attention that takes packed
documents.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from dasd_megatron.training.moe import use_pack_router
from dasd_megatron.training.packed import QUERY_BLOCK, DocumentGroup, PackedDocuments

# Transformer Engine fuses a norm with the projection behind it; checkpoints carry its names, so that they move between the
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


class ReferenceAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention within each document of a pack (in place of TEDotProductAttention, format `thd`).

    Documents of similar length are attended to together, right-padded: under a causal mask padding behind a document
    changes none of its tokens. With context parallelism keys and values are gathered, and each block of queries sees its
    document's keys. Time grows with the sum of squared document lengths, memory with the tokens.
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
        assert packed_seq_params.output_order is not None
        if packed_seq_params.pack_order is not None:
            key, value = _gather_pack(key, value, packed_seq_params.pack_order)
        outputs = [self._attend(query, key, value, group) for group in packed_seq_params.groups]
        return torch.cat(outputs).index_select(0, packed_seq_params.output_order).flatten(1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: DocumentGroup
    ) -> torch.Tensor:
        """Outputs of the group's real queries, [queries, heads, head_dim]."""
        length = group.queries.shape[1]
        q = _take(query, group.queries)
        k, v = _take(key, group.keys), _take(value, group.keys)
        earlier = k.shape[2] - length  # keys before the first query
        attended = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_causal_mask(length, earlier, q.dtype) if earlier else None,
            is_causal=not earlier,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)
        return attended.flatten(0, 1) if group.valid is None else attended[group.valid]


def _gather_pack(key: torch.Tensor, value: torch.Tensor, pack_order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all context-parallel ranks, in the pack's order; gradients go back to their ranks."""
    gathered = gather_from_sequence_parallel_region(
        torch.cat([key, value], 1),
        tensor_parallel_output_grad=True,
        group=parallel_state.get_context_parallel_group(),
    )
    ordered: torch.Tensor = gathered.index_select(0, pack_order)
    return ordered[:, : key.shape[1]], ordered[:, key.shape[1] :]


def _take(tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] at int64 [documents, length] -> [documents, heads, length, head_dim]."""
    return tensor.index_select(0, tokens.flatten()).view(*tokens.shape, *tensor.shape[1:]).transpose(1, 2)


_mask = torch.empty(0, 0)


def _causal_mask(queries: int, earlier: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [queries, earlier + queries] for queries that begin `earlier` keys into their document.

    All masks are views of one: autograd keeps each call's mask, and copies would add up to the square of the length.
    """
    global _mask
    width = _mask.shape[1] - _mask.shape[0]
    if queries > _mask.shape[0] or earlier > width or dtype is not _mask.dtype:
        rows, width = max(queries, QUERY_BLOCK), max(earlier, width)
        _mask = torch.full((rows, width + rows), float("-inf"), dtype=dtype).triu_(width + 1)
    return _mask[:queries, width - earlier : width + queries]


class ReferenceSpecProvider(LocalSpecProvider):  # type: ignore[misc]
    """Megatron's BackendSpecProvider for the CPU."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        """See BackendSpecProvider."""
        return ReferenceSeparateRMSNorm

    def core_attention(self) -> type:
        """See BackendSpecProvider."""
        return ReferenceAttention


def reference_block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage's model chunk."""
    backend = ReferenceSpecProvider()
    qk_norm = ReferenceSeparateRMSNorm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=backend.column_parallel_linear(),
        core_attention=backend.core_attention(),
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
        mlp=use_pack_router(mlp) if config.num_moe_experts else mlp,
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map=checkpoint_keys(config),
    )
    spec = ModuleSpec(module=TransformerLayer, submodules=layer)
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=ReferenceSeparateRMSNorm)
