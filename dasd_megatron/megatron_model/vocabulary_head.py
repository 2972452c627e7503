"""The head's rows of one tensor-parallel rank, and the hidden states that they are multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)


@dataclass(frozen=True)
class HeadRows:
    """This tensor-parallel rank's rows of the head.

    Attributes:
        first: token id of the first row.
        count: rows of tokens; those behind them are padding.
        group: the ranks that share the vocabulary.
    """

    first: int
    count: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, weight: torch.Tensor, vocabulary: int) -> HeadRows:
        """Of this rank's part of the head, [rows, hidden]; `vocabulary` is the size without padding."""
        group = parallel_state.get_tensor_model_parallel_group()
        first = group.rank() * weight.shape[0]
        return cls(first, max(0, min(weight.shape[0], vocabulary - first)), group)


def whole_hidden_states(hidden_states: torch.Tensor, sequence_parallel: bool) -> torch.Tensor:
    """[tokens, hidden] for all rows of the head, from the final norm's output [tokens, 1, hidden].

    With sequence parallelism that is this rank's share of the tokens. Gradients are summed over tensor-parallel ranks.
    """
    if sequence_parallel:
        gathered = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=True)
    else:
        gathered = copy_to_tensor_model_parallel_region(hidden_states)
    states: torch.Tensor = gathered[:, 0]
    return states


def float32_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Matrix product in float32, whatever the factors' precision; in `out`, or memory of its own: it can be changed in place."""
    if left.dtype is torch.float32:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    product = left @ right
    return product.float() if out is None else out.copy_(product)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds a matrix product to `total`, float32, whatever the factors' precision."""
    if left.dtype is torch.float32:
        torch.addmm(total, left, right, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
