"""A micro-batch of packed documents as the model takes it, on every pipeline stage and context-parallel rank."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from dasd_megatron.cpu_backend.document_groups import AttentionPlan, attention_plan


@dataclass
class PackedDocuments(PackedSeqParams):  # type: ignore[misc]
    """Megatron's description of a pack (format `thd`), with what the CPU attention works on.

    Attributes:
        cpu_plan: the calls of the CPU attention; None where Transformer Engine does the work.
    """

    cpu_plan: AttentionPlan | None = None

    def to(self, device: torch.device) -> PackedDocuments:
        """The same on another device; the host doesn't wait for it."""
        moved = copy(self)
        boundaries = to_device(self.cu_seqlens_q, device)
        moved.cu_seqlens_q = moved.cu_seqlens_kv = boundaries
        moved.cu_seqlens_q_padded = moved.cu_seqlens_kv_padded = boundaries
        return moved


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To a GPU from pinned memory, which alone it can read while the host goes on."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def packed_documents(slots: Sequence[int], ranks: int = 1, rank: int = 0) -> PackedDocuments:
    """The description of a pack whose documents lie in these slots.

    Args:
        slots: tokens of each document with its padding, multiples of 2 x `ranks` where there is context parallelism.
        ranks, rank: of context parallelism.
    """
    cu_seqlens = torch.tensor([0, *accumulate(slots)], dtype=torch.int32)
    cpu_plan: AttentionPlan | None = None
    if not torch.cuda.is_available():
        gathered = torch.cat([rank_tokens(slots, ranks, r) for r in range(ranks)]) if ranks > 1 else None
        cpu_plan = attention_plan(slots, ranks, rank, gathered)
    return PackedDocuments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        # A slot is one document to the kernels, padding included: nothing lies between documents.
        cu_seqlens_q_padded=cu_seqlens,
        cu_seqlens_kv_padded=cu_seqlens,
        max_seqlen_q=max(slots),
        max_seqlen_kv=max(slots),
        cpu_plan=cpu_plan,
    )


def rank_tokens(slots: Sequence[int], ranks: int, rank: int) -> torch.Tensor:
    """Which tokens of a pack a context-parallel rank holds, int64 [tokens / ranks].

    Each document is cut into 2 x `ranks` chunks; rank r holds chunks r and 2 x ranks - 1 - r, so that causal attention
    costs all ranks the same (Transformer Engine's order, `thd_get_partitioned_indices`).
    """
    if ranks == 1:
        return torch.arange(sum(slots))
    parts = []
    for start, end in pairwise([0, *accumulate(slots)]):
        chunk = (end - start) // (2 * ranks)
        parts += [torch.arange(start + n * chunk, start + (n + 1) * chunk) for n in (rank, 2 * ranks - 1 - rank)]
    return torch.cat(parts)


def position_ids(slots: Sequence[int]) -> torch.Tensor:
    """Position of each token in its own document, int64 [tokens]."""
    return torch.cat([torch.arange(length) for length in slots])
