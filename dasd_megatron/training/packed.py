"""A micro-batch of packed documents as the model takes it, on every pipeline stage and context-parallel rank."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams

# Queries of one attention call where the keys begin earlier: the call needs a mask of so many rows.
QUERY_BLOCK = 256


@dataclass(frozen=True)
class DocumentGroup:
    """Documents, or parts of them, that one call of the CPU reference attention serves.

    Either documents of similar length, padded to the longest of them (then `queries` equals `keys`), or one block of
    queries and all keys of its document up to the block's end.

    Attributes:
        queries: int64 [documents, longest], which of this rank's tokens; padding repeats the document's last one.
        keys: int64 [documents, keys], which tokens of the whole pack.
        valid: bool [documents, longest], whether a query is real; None where all are.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    valid: torch.Tensor | None


@dataclass
class PackedDocuments(PackedSeqParams):  # type: ignore[misc]
    """Megatron's description of a pack (format `thd`), with what the CPU reference attention works on.

    Attributes:
        groups: the calls to make; empty where Transformer Engine does the work.
        pack_order: int64 [tokens], where the tokens gathered from all context-parallel ranks lie in the pack's own order;
            None without context parallelism.
        output_order: int64 [this rank's tokens], where each token's output lies among those of all groups.
    """

    groups: tuple[DocumentGroup, ...] = ()
    pack_order: torch.Tensor | None = None
    output_order: torch.Tensor | None = field(default=None)

    def to(self, device: torch.device) -> PackedDocuments:
        """The same on another device."""
        moved = copy(self)
        boundaries = self.cu_seqlens_q.to(device)
        moved.cu_seqlens_q = moved.cu_seqlens_kv = boundaries
        moved.cu_seqlens_q_padded = moved.cu_seqlens_kv_padded = boundaries
        return moved


def packed_documents(slots: Sequence[int], ranks: int = 1, rank: int = 0) -> PackedDocuments:
    """The description of a pack whose documents take up these slots.

    Args:
        slots: tokens of each document with its padding, multiples of 2 x `ranks` where there is context parallelism.
        ranks, rank: of context parallelism.
    """
    boundaries = [0, *accumulate(slots)]
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    reference = not torch.cuda.is_available()
    groups: tuple[DocumentGroup, ...] = ()
    if reference:
        groups = _whole_documents(slots, boundaries) if ranks == 1 else _split_documents(slots, boundaries, ranks, rank)
    return PackedDocuments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        # A slot is one document to the kernels, padding included: nothing lies between documents.
        cu_seqlens_q_padded=cu_seqlens,
        cu_seqlens_kv_padded=cu_seqlens,
        max_seqlen_q=max(slots),
        max_seqlen_kv=max(slots),
        groups=groups,
        pack_order=_inverse(torch.cat([rank_tokens(slots, ranks, r) for r in range(ranks)]))
        if reference and ranks > 1
        else None,
        output_order=_output_order(groups) if reference else None,
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


def _whole_documents(slots: Sequence[int], boundaries: Sequence[int]) -> tuple[DocumentGroup, ...]:
    """Groups by length within a factor of 1.25, so that padding costs little and the calls stay few."""
    lengths, starts = torch.tensor(slots), torch.tensor(boundaries[:-1])
    order = lengths.argsort(stable=True)
    groups, first = [], 0
    for place in range(1, len(order) + 1):
        if place < len(order) and lengths[order[place]] <= 1.25 * lengths[order[first]] + 8:
            continue
        members = order[first:place]
        offset = torch.arange(int(lengths[members].max()))
        valid = offset < lengths[members, None]
        tokens = starts[members, None] + offset.minimum(lengths[members, None] - 1)
        groups.append(DocumentGroup(tokens, tokens, None if bool(valid.all()) else valid))
        first = place
    return tuple(groups)


def _split_documents(
    slots: Sequence[int], boundaries: Sequence[int], ranks: int, rank: int
) -> tuple[DocumentGroup, ...]:
    """Blocks of this rank's queries, each with its document's keys up to the block's end."""
    groups, first = [], 0  # `first`: this rank's tokens before the chunk
    for start, length in zip(boundaries, slots, strict=False):
        chunk = length // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            block = max(1, chunk) if number == 0 else QUERY_BLOCK  # the first chunk needs no mask
            for offset in range(0, chunk, block):
                size = min(block, chunk - offset)
                queries = torch.arange(first + offset, first + offset + size)
                keys = torch.arange(start, start + number * chunk + offset + size)
                groups.append(DocumentGroup(queries[None], keys[None], None))
            first += chunk
    return tuple(groups)


def _output_order(groups: Sequence[DocumentGroup]) -> torch.Tensor:
    """Where each token's output lies when the groups' outputs are put one after the other."""
    return _inverse(torch.cat([(g.queries if g.valid is None else g.queries[g.valid]).flatten() for g in groups]))


def _inverse(order: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
