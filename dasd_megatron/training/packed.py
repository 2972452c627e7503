"""A micro-batch of packed documents as the model takes it, on every pipeline stage."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of similar length, padded to the longest of them, so that one attention call serves them all.

    Attributes:
        gather: [documents, longest], index in the pack of each position; padding repeats the document's last token.
        valid: [documents, longest], whether a position is real.
    """

    gather: torch.Tensor
    valid: torch.Tensor


@dataclass
class PackedDocuments(PackedSeqParams):  # type: ignore[misc]
    """Megatron's description of a pack (format `thd`), with the groups that the CPU reference attention works on."""

    groups: tuple[DocumentGroup, ...] = ()

    def to(self, device: torch.device) -> PackedDocuments:
        """The same on another device."""
        moved = copy(self)
        moved.cu_seqlens_q = moved.cu_seqlens_kv = self.cu_seqlens_q.to(device)
        return moved


def packed_documents(lengths: torch.Tensor) -> PackedDocuments:
    """The description of a pack whose documents have these lengths, int [documents]."""
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return PackedDocuments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        groups=() if torch.cuda.is_available() else _groups(lengths, cu_seqlens[:-1].long()),
    )


def position_ids(lengths: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own document, int64 [tokens]."""
    return torch.cat([torch.arange(int(length)) for length in lengths])


def _groups(lengths: torch.Tensor, starts: torch.Tensor) -> tuple[DocumentGroup, ...]:
    """Groups by length within a factor of 1.25, so that padding costs little and the calls stay few."""
    order = lengths.argsort(stable=True)
    groups, first = [], 0
    for place in range(1, len(order) + 1):
        if place < len(order) and lengths[order[place]] <= 1.25 * lengths[order[first]] + 8:
            continue
        members = order[first:place]
        offset = torch.arange(int(lengths[members].max()))
        valid = offset < lengths[members, None]
        gather = starts[members, None] + offset.minimum(lengths[members, None] - 1)
        groups.append(DocumentGroup(gather, valid))
        first = place
    return tuple(groups)
