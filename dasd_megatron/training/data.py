"""Which packs each step trains on, the same for every layout, and their micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.recipe.padding import Alignment, document_slots
from dasd_megatron.training.packed import PackedDocuments, packed_documents, position_ids, rank_tokens


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
        loss_mask: float32 [1, tokens], 1 where the label is a target.
        padding: bool [1, tokens], where there is no token of a document.
        documents: where documents begin and end.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    loss_mask: torch.Tensor
    padding: torch.Tensor
    documents: PackedDocuments

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Packs:
    """The packs of an artifact, in an order that is reshuffled every epoch and depends on nothing but the seed."""

    def __init__(self, artifact: Artifact, seed: int, isolate_documents: bool) -> None:
        self._table = artifact.read("packs")
        self.context_length: int = artifact.manifest["context_length"]
        self._seed = seed
        self._isolate = isolate_documents

    def __len__(self) -> int:
        return len(self._table)

    def index(self, sample: int) -> int:
        """The pack that is the `sample`-th to be trained on, counted over all epochs."""
        epoch, place = divmod(sample, len(self))
        return int(_order(self._seed, epoch, len(self))[place])

    def pack(self, sample: int) -> Pack:
        """The `sample`-th pack to be trained on."""
        index = self.index(sample)
        ids = self._table["input_ids"][index].values.to_numpy()
        targets = self._table["loss_mask"][index].values.to_numpy(zero_copy_only=False)
        return Pack(ids, targets, self.attended_lengths(sample))

    def attended_lengths(self, sample: int) -> list[int]:
        """Tokens of each document of that pack; of the whole pack where documents aren't isolated."""
        lengths: list[int] = self._table["document_lengths"][self.index(sample)].as_py()
        return lengths if self._isolate else [sum(lengths)]

    def uuids(self, sample: int) -> list[str]:
        """The documents of that pack."""
        uuids: list[str] = self._table["uuids"][self.index(sample)].as_py()
        return uuids


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
    input_ids, targets, padding = np.zeros(tokens, np.int64), np.zeros(tokens, np.float32), np.ones(tokens, np.bool_)
    input_ids[own], targets[own], padding[own] = pack.ids, pack.targets, False
    # Position i predicts token i + 1; a document's last position, and padding, would predict the next document's first.
    labels, loss_mask = np.roll(input_ids, -1), np.roll(targets, -1)
    loss_mask[first + lengths - 1] = 0.0
    loss_mask[padding] = 0.0
    held = rank_tokens(slots, ranks, rank)

    def share(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values)[held][None]

    return MicroBatch(
        input_ids=share(input_ids),
        labels=share(labels),
        position_ids=position_ids(slots)[held][None],
        loss_mask=share(loss_mask),
        padding=share(padding),
        documents=packed_documents(slots, ranks, rank),
    )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
