"""All alignment rules of a pack, in one place: how long each document is made, and the pack.

A document is padded inside its own slot, behind its last token: under a causal mask this changes none of its tokens, and the
attention kernels see documents without gaps. What the pack still lacks becomes a document of its own. No padded
position is a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.parallel_layout import FP8_MULTIPLE


@dataclass(frozen=True)
class Alignment:
    """What lengths must divide by, in tokens before any split over ranks.

    Attributes:
        document: each document; context parallelism gives every rank two chunks of it, one near the beginning and one near
            the end, so that the work under a causal mask is even.
        pack: the whole pack; each rank's share after the split over context and, with sequence parallelism,
            tensor-parallel ranks.
    """

    document: int
    pack: int


def alignment(parallel: ParallelConfig, fp8: str | None) -> Alignment:
    """The alignment that a layout and precision need."""
    document = 2 * parallel.context if parallel.context > 1 else 1
    # In FP8 also without sequence parallelism: gathered activations are split by it inside Transformer Engine's layers.
    shards = parallel.context * (parallel.tensor if parallel.splits_sequence or fp8 else 1)
    return Alignment(document, math.lcm(document, shards * FP8_MULTIPLE[fp8] if fp8 else shards))


def document_slots(lengths: Sequence[int], align: Alignment, pack_length: int = 0) -> list[int]:
    """Length of each document's slot; one more slot, of padding, at the end if the pack needs it.

    Args:
        lengths: tokens of each document.
        pack_length: make the pack at least so long (and aligned).
    """
    slots = [_up(length, align.document) for length in lengths]
    tail = _up(max(sum(slots), pack_length), align.pack) - sum(slots)
    return [*slots, tail] if tail else slots


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
