"""Context parallelism over packs: each document's tokens in 2 x ranks parts, of which a rank has one from each end."""

from __future__ import annotations

from itertools import pairwise

import torch

from tests.helpers.te_on_cpu.device import kernel


def _tokens_of(cu_seqlens: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """A rank's tokens of a pack."""
    found = []
    for start, end in pairwise(cu_seqlens.tolist()):
        part = (end - start) // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            found.append(torch.arange(start + number * part, start + (number + 1) * part))
    return torch.cat(found)


@kernel
def thd_get_partitioned_indices(
    cu_seqlens: torch.Tensor, total_tokens: int, world_size: int, rank: int
) -> torch.Tensor:
    """A rank's tokens of a pack."""
    return _tokens_of(cu_seqlens, world_size, rank).to(torch.int32)


@kernel
def thd_sequence_order_to_cp_rank_order(
    x: torch.Tensor, cu_seqlens: torch.Tensor, cp_size: int, total_tokens: int
) -> torch.Tensor:
    """A pack's tokens, those of the first rank first."""
    return x[torch.cat([_tokens_of(cu_seqlens, cp_size, rank) for rank in range(cp_size)])]


@kernel
def thd_cp_rank_order_to_sequence_order(
    x: torch.Tensor, cu_seqlens: torch.Tensor, cp_size: int, total_tokens: int
) -> torch.Tensor:
    """And back."""
    places = torch.cat([_tokens_of(cu_seqlens, cp_size, rank) for rank in range(cp_size)])
    return torch.empty_like(x).index_copy_(0, places, x)


def half_of_each(cu_seqlens: torch.Tensor, second: bool) -> torch.Tensor:
    """Places of the first or second half of each document's own tokens."""
    found = []
    for start, end in pairwise(cu_seqlens.tolist()):
        middle = (start + end) // 2
        found.append(torch.arange(middle, end) if second else torch.arange(start, middle))
    return torch.cat(found)


@kernel
def thd_read_half_tensor(tensor: torch.Tensor, cu_seqlens: torch.Tensor, half_idx: int) -> torch.Tensor:
    """[tokens, ...], or [2, tokens, ...] of keys and values together."""
    return tensor.index_select(tensor.dim() - 3, half_of_each(cu_seqlens, bool(half_idx)))


def _check_packed(packed: bool) -> None:
    if not packed:
        raise NotImplementedError("log-sums of softmax that aren't packed")


@kernel
def thd_second_half_lse_correction(
    lse: torch.Tensor, lse_per_step: torch.Tensor, cu_seqlens: torch.Tensor, lse_packed: bool
) -> None:
    """log(exp(a) + exp(b)) for the second halves; `lse` is [heads, tokens]."""
    _check_packed(lse_packed)
    places = half_of_each(cu_seqlens, second=True)
    lse[:, places] = torch.logaddexp(lse[:, places], lse_per_step[:, : len(places)].to(lse.dtype))


@kernel
def thd_read_second_half_lse(
    lse: torch.Tensor, cu_seqlens: torch.Tensor, lse_packed: bool, second_half_lse_seqlen: int
) -> torch.Tensor:
    """Of the second halves."""
    _check_packed(lse_packed)
    return lse[:, half_of_each(cu_seqlens, second=True)].contiguous()


@kernel
def thd_out_correction(
    out: torch.Tensor,
    out_per_step: torch.Tensor,
    lse_before: torch.Tensor,
    lse: torch.Tensor,
    lse_per_step: torch.Tensor,
    cu_seqlens: torch.Tensor,
    only_second_half: bool,
    lse_packed: bool,
) -> None:
    """Adds a step's output to what there is, each weighted by its part of the softmax's denominator."""
    _check_packed(lse_packed)
    places = half_of_each(cu_seqlens, second=True) if only_second_half else torch.arange(int(cu_seqlens[-1]))
    kept = torch.exp(lse_before[:, places] - lse[:, places]).t()[..., None]
    added = torch.exp(lse_per_step[:, : len(places)].to(lse.dtype) - lse[:, places]).t()[..., None]
    step = out_per_step[: len(places)].reshape(len(places), *out.shape[1:])
    out[places] = (out[places].float() * kept + step.float() * added).to(out.dtype)


@kernel
def thd_grad_correction(
    grad: torch.Tensor, grad_per_step: torch.Tensor, cu_seqlens: torch.Tensor, first_half: str, second_half: str
) -> None:
    """Of each half: `none`, `zero`, `copy` the step's, or `add` it. The step's gradient may have one half alone."""
    dimension = grad.dim() - 3
    is_half = grad_per_step.shape[dimension] != grad.shape[dimension]
    for second, operation in ((False, first_half), (True, second_half)):
        places = half_of_each(cu_seqlens, second)
        if operation == "zero":
            grad.index_fill_(dimension, places, 0)
        elif operation != "none":
            values = grad_per_step if is_half else grad_per_step.index_select(dimension, places)
            put = grad.index_copy_ if operation == "copy" else grad.index_add_
            put(dimension, places, values.to(grad.dtype))
