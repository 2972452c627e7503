"""Micro-batches: one pack each, aligned for the layout and precision; of it, one context-parallel rank's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from numpy.typing import NDArray

from dasd_megatron.megatron_model.packed_documents import (
    PackedDocuments,
    packed_documents,
    position_ids,
    rank_tokens,
    to_device,
)
from dasd_megatron.models.pack_padding import Alignment, document_slots


@dataclass(frozen=True)
class Pack:
    """Documents one after another, without padding.

    Attributes:
        ids: int32 [tokens].
        targets: bool [tokens], whether the loss falls on predicting the token.
        lengths: tokens of each document.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    lengths: Sequence[int]


@dataclass(frozen=True)
class MicroBatch:
    """One pack, aligned; of it, the tokens of this context-parallel rank.

    Attributes:
        input_ids, labels, position_ids: int64 [1, tokens].
        targets: int64 [targets], the positions whose labels the loss falls on. Found on the host: to find them on a GPU, the host
            would have to wait for it.
        padding: bool [1, tokens], where there is no token of a document.
        documents: where documents begin and end.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    padding: torch.Tensor
    documents: PackedDocuments

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; the host doesn't wait for it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "documents"}
        return MicroBatch(
            **{name: to_device(tensor, device) for name, tensor in own.items()}, documents=self.documents.to(device)
        )


def make_micro_batches(packs: Sequence[Pack], align: Alignment, ranks: int = 1, rank: int = 0) -> list[MicroBatch]:
    """Micro-batches of equal length (Megatron's pipeline takes no others), as short as the longest pack allows.

    Args:
        align: what lengths must divide by.
        ranks, rank: of context parallelism; each rank gets its share of every document.
    """
    longest = max(sum(document_slots(pack.lengths, align)) for pack in packs)
    return [_micro_batch(pack, document_slots(pack.lengths, align, longest), ranks, rank) for pack in packs]


def _micro_batch(pack: Pack, slots: list[int], ranks: int, rank: int) -> MicroBatch:
    tokens = sum(slots)
    lengths = np.array(pack.lengths)
    first = np.cumsum([0, *slots])[: len(lengths)]  # where each document begins
    own = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(len(pack.ids))  # where each token goes
    input_ids, learned, padding = np.zeros(tokens, np.int64), np.zeros(tokens, np.bool_), np.ones(tokens, np.bool_)
    input_ids[own], learned[own], padding[own] = pack.ids, pack.targets, False
    # Position i predicts token i + 1; a document's last position, and padding, would predict the next document's first.
    labels, is_target = np.roll(input_ids, -1), np.roll(learned, -1)
    is_target[first + lengths - 1] = False
    is_target[padding] = False
    held = rank_tokens(slots, ranks, rank)

    def share(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values)[held][None]

    return MicroBatch(
        input_ids=share(input_ids),
        labels=share(labels),
        position_ids=position_ids(slots)[held][None],
        targets=share(is_target)[0].nonzero()[:, 0],
        padding=share(padding),
        documents=packed_documents(slots, ranks, rank),
    )


def padding_mask(batch: MicroBatch, model: GPTModel) -> torch.Tensor:
    """Which tokens a mixture of experts leaves out of its statistics, bool [1, tokens], as this chunk expects it.

    The first stage splits the mask over tensor-parallel ranks together with the embedding; later ones do not.
    """
    if model.pre_process or not model.config.sequence_parallel:
        return batch.padding
    shares = batch.padding.chunk(parallel_state.get_tensor_model_parallel_world_size(), 1)
    share: torch.Tensor = shares[parallel_state.get_tensor_model_parallel_rank()]
    return share
