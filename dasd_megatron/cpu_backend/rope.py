"""Rotary embeddings of a pack in one go, for a machine without a GPU: Megatron goes document by document."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rope_of_packs(
    t: torch.Tensor,
    cu_seqlens: torch.Tensor,
    freqs: torch.Tensor,
    *,
    cp_group: dist.ProcessGroup,
    mscale: float = 1.0,
    **interleaved: Any,
) -> torch.Tensor:
    """In place of Megatron's `_apply_rotary_pos_emb_thd`: t [tokens, heads, head_dim], freqs [positions, 1, 1, head_dim]."""
    assert not any(interleaved.values()), "no family has its rotary dimensions interleaved"
    cosine, sine = _factors(cu_seqlens, freqs, cp_group, mscale, t.dtype)
    first, second = t.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def _factors(
    cu_seqlens: torch.Tensor, freqs: torch.Tensor, group: dist.ProcessGroup, mscale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine for this rank's tokens [tokens, 1, head_dim / 2], the same for both halves; made once for all layers."""
    made: Any = getattr(cu_seqlens, "rope_factors", None)
    if made is None or made[0] is not freqs:
        angles = freqs[_positions(cu_seqlens, group), 0, :, : freqs.shape[-1] // 2]
        made = freqs, (angles.cos() * mscale).to(dtype), (angles.sin() * mscale).to(dtype)
        cu_seqlens.rope_factors = made  # type: ignore[attr-defined]
    return made[1], made[2]


def _positions(cu_seqlens: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Of this rank's tokens in their documents, int64 [tokens].

    Of each document a context-parallel rank holds two chunks (rank_tokens in megatron_model/packed_documents.py).
    """
    ranks, rank = group.size(), group.rank()
    lengths = cu_seqlens.diff().long()
    own = lengths // ranks
    begin = (own.cumsum(0) - own).repeat_interleave(own)
    positions = torch.arange(len(begin)) - begin
    if ranks > 1:
        chunk, length = (own // 2).repeat_interleave(own), lengths.repeat_interleave(own)
        last = positions - chunk + length - (rank + 1) * chunk
        positions = torch.where(positions < chunk, positions + rank * chunk, last)
    return positions
