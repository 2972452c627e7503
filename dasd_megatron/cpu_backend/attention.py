"""Attention over packed documents for a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention, make_sharded_tensors_for_checkpoint

from dasd_megatron.cpu_backend.document_groups import QUERY_BLOCK, AttentionPlan, DocumentGroup
from dasd_megatron.cpu_backend.sink_attention import sink_attention


class ReferenceAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention within each document of a pack (in place of TEDotProductAttention, format `thd`).

    Documents of similar length are attended to together, right-padded: under a causal mask padding behind a document
    changes none of its tokens. With context parallelism keys and values are gathered, and each block of queries sees its
    document's keys. Time grows with the sum of squared document lengths (in layers with a window with the tokens), memory
    with the tokens.
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
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        # Tokens that a token sees, itself among them.
        self.window: int | None = config.window_size[0] + 1 if windowed else None
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = torch.nn.Parameter(torch.empty(heads, dtype=config.params_dtype))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """query [tokens, heads, head_dim], key and value [tokens, groups, head_dim] -> [tokens, heads * head_dim]."""
        assert packed_seq_params is not None, "the trainer packs every batch"
        plan: AttentionPlan = packed_seq_params.cpu_plan
        if plan.pack_order is not None:
            key, value = _gather_pack(key, value, plan.pack_order)
        outputs = []
        for group in plan.groups:
            attended = [self._attend(query, key, value, *block) for block in _blocks(group, self.window)]
            whole = torch.cat(attended, 1) if len(attended) > 1 else attended[0]
            outputs.append(whole.flatten(0, 1) if group.valid is None else whole[group.valid])
        return torch.cat(outputs).index_select(0, plan.output_order).flatten(1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """Outputs [documents, length, heads, head_dim] of `queries` [documents, length], which see `keys`."""
        length = queries.shape[1]
        q, k, v = _take(query, queries), _take(key, keys), _take(value, keys)
        earlier = k.shape[2] - length  # keys before the first query
        masked = earlier > 0 or (self.window is not None and length > self.window)
        mask = _mask(length, earlier, self.window, q.dtype) if masked else None
        if self.softmax_offset is not None:
            return sink_attention(q, k, v, self.softmax_offset, mask, self.softmax_scale).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Of the sinks, if there are any: split over tensor-parallel ranks, as TEDotProductAttention has them."""
        assert metadata is not None
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"softmax_offset": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )
        return sharded


class ReferenceSinkAttention(ReferenceAttention):
    """Attention with sinks: it has an (empty) extra state in checkpoints, as TEDotProductAttention then has."""

    def get_extra_state(self) -> None:
        """Nothing; see ReferenceSeparateRMSNorm."""

    def set_extra_state(self, state: Any) -> None:
        """Transformer Engine's means nothing here."""


def _blocks(group: DocumentGroup, window: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Queries that are served together, and the keys of which they see some."""
    length = group.queries.shape[1]
    size = length if window is None else QUERY_BLOCK
    earlier = group.keys.shape[1] - length
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if window is None else max(0, earlier + start - window + 1)
        yield group.queries[:, start:end], group.keys[:, first : earlier + end]


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


_masks: dict[int | None, torch.Tensor] = {}


def _mask(queries: int, earlier: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [queries, earlier + queries] for queries that begin `earlier` keys into what they are given.

    Each sees itself and the keys before it, with a window the last `window` - 1 of these. All masks of a window are views of
    one: autograd keeps each call's mask, and copies would add up to the square of the length.
    """
    mask = _masks.get(window, torch.empty(0, 0))
    width = mask.shape[1] - mask.shape[0]
    if queries > mask.shape[0] or earlier > width or dtype is not mask.dtype:
        rows = max(queries, QUERY_BLOCK)
        width = max(earlier, width) if window is None else window - 1
        mask = torch.full((rows, width + rows), float("-inf"), dtype=dtype).triu_(width + 1)
        if window is not None:
            mask += torch.full_like(mask, float("-inf")).tril_(-1)
        _masks[window] = mask
    return mask[:queries, width - earlier : width + queries]
