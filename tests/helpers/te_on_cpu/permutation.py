"""Tokens sorted by expert and back, in place of Transformer Engine's Triton kernels, which its interpreter takes minutes for.

Same functions, same arguments as in transformer_engine/pytorch/triton/permutation.py, and compared with the kernels themselves in
tests/integration/test_te_on_cpu.py. A row map has for each token its rows among all that are sorted by expert, the last first;
then the experts that they are for; at the end how many there are. The rest of each part has no meaning.
"""

from __future__ import annotations

import torch
from transformer_engine.pytorch.triton.permutation import (  # noqa: F401 (the one that nothing here calls)
    unpermute_with_mask_map_bwd_with_merging_probs,
)

from tests.helpers.te_on_cpu.device import kernel

Optional = torch.Tensor | None


@kernel
def make_row_id_map(routing_map: torch.Tensor, num_tokens: int, num_experts: int) -> torch.Tensor:
    """int32 [tokens, 2 * experts + 1], of a mask [tokens, experts]."""
    routed = routing_map != 0
    of_experts = routed.sum(0)
    first = of_experts.cumsum(0) - of_experts
    rows = torch.where(routed, routed.cumsum(0) - 1 + first, -1)
    rows, experts = rows.sort(dim=1, descending=True)
    return torch.cat([rows, experts, routed.sum(1, keepdim=True)], dim=1).to(torch.int32)


def _places(row_map: torch.Tensor, place: int, experts: int, pads: Optional) -> tuple[torch.Tensor, ...]:
    """Of the tokens that go to more than `place` experts: token, row and expert."""
    tokens = torch.nonzero(row_map[:, -1] > place)[:, 0]
    rows, of_expert = row_map[tokens, place].long(), row_map[tokens, experts + place].long()
    return tokens, rows if pads is None else rows + pads[of_expert], of_expert


@kernel
def permute_with_mask_map(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    probs: Optional,
    scale: Optional,
    pad_offsets: Optional,
    num_tokens: int,
    num_experts: int,
    num_out_tokens: int,
    hidden_size: int,
    scale_hidden_dim: int | None,
) -> tuple[torch.Tensor, Optional, Optional]:
    """Rows by expert, with their scales and probabilities; a token of probability 0 is padding, and its row 0."""
    output = inp.new_zeros((num_out_tokens, hidden_size))
    scales = None if scale is None else scale.new_zeros((num_out_tokens, scale.shape[1]))
    chosen = None if probs is None else probs.new_zeros((num_out_tokens,))
    for place in range(num_experts):
        tokens, rows, experts = _places(row_id_map, place, num_experts, pad_offsets)
        output[rows] = inp[tokens]
        if scale is not None and scales is not None:
            scales[rows] = scale[tokens]
        if probs is not None and chosen is not None:
            chosen[rows] = probs[tokens, experts]
            output[rows[chosen[rows] == 0]] = 0
    return output, scales, chosen


@kernel
def unpermute_with_mask_map(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    merging_probs: Optional,
    permuted_probs: Optional,
    pad_offsets: Optional,
    num_tokens: int,
    num_experts: int,
    hidden_size: int,
) -> tuple[torch.Tensor, Optional]:
    """Each token's rows, weighted by `merging_probs`, summed in float32; and the probabilities by token and expert."""
    total = torch.zeros((num_tokens, hidden_size))
    probs = None if permuted_probs is None else permuted_probs.new_zeros((num_tokens, num_experts))
    for place in range(num_experts):
        tokens, rows, experts = _places(row_id_map, place, num_experts, pad_offsets)
        found = inp[rows].float()
        total[tokens] += found if merging_probs is None else found * merging_probs[tokens, experts, None].float()
        if permuted_probs is not None and probs is not None:
            probs[tokens, experts] = permuted_probs[rows]
    return total.to(inp.dtype), probs


@kernel
def make_chunk_sort_map(
    split_sizes: torch.Tensor, sorted_indices: torch.Tensor, num_tokens: int, num_splits: int
) -> torch.Tensor:
    """int32 [tokens]: the row of each once chunks of these sizes stand in another order; rows beyond them stay."""
    sizes, order = split_sizes.long(), sorted_indices.long()
    first = sizes.cumsum(0) - sizes
    found = torch.arange(num_tokens, dtype=torch.int32)
    reached = 0
    for chunk in order.tolist():
        size, start = int(sizes[chunk]), int(first[chunk])
        found[start : start + size] = torch.arange(reached, reached + size, dtype=torch.int32)
        reached += size
    return found


@kernel
def sort_chunks_by_map(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    probs: Optional,
    num_tokens: int,
    hidden_size: int,
    is_forward: bool,
) -> tuple[torch.Tensor, Optional]:
    """Rows, and their probabilities, to where the map says, or from there."""
    rows = row_id_map.long()

    def sort(values: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(values).index_copy_(0, rows, values) if is_forward else values[rows]

    return sort(inp), None if probs is None else sort(probs)
