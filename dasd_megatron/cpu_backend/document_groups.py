"""How the CPU attention works through a pack: groups of documents that one call serves, and the order of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

# Queries of one attention call where the keys begin earlier: the call needs a mask of as many rows.
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


@dataclass(frozen=True)
class AttentionPlan:
    """One rank's calls for a pack.

    Attributes:
        groups: the calls to make.
        output_order: int64 [this rank's tokens], where each token's output lies among those of all groups.
        pack_order: int64 [tokens], where the tokens gathered from all context-parallel ranks lie in the pack's own order;
            None without context parallelism.
    """

    groups: tuple[DocumentGroup, ...]
    output_order: torch.Tensor
    pack_order: torch.Tensor | None


def attention_plan(slots: Sequence[int], ranks: int, rank: int, gathered: torch.Tensor | None) -> AttentionPlan:
    """The plan for documents in these slots.

    Args:
        slots: tokens of each document with its padding.
        ranks, rank: of context parallelism.
        gathered: int64 [tokens], which tokens of the pack all ranks hold, one rank after the other; None without context
            parallelism.
    """
    boundaries = [0, *accumulate(slots)]
    groups = _whole_documents(slots, boundaries) if ranks == 1 else _split_documents(slots, boundaries, ranks, rank)
    return AttentionPlan(groups, _output_order(groups), None if gathered is None else _inverse(gathered))


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
