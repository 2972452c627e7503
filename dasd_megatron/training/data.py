"""Which packs each step trains on, the same for every layout, and their micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.training.packed import PackedDocuments, packed_documents, position_ids


@dataclass(frozen=True)
class MicroBatch:
    """One pack, padded to the context length; padding is a document of its own, with no loss.

    Attributes:
        input_ids, labels, position_ids: int64 [1, context_length].
        loss_mask: float32 [1, context_length], 1 where the label is a target.
        documents: where documents begin and end.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    loss_mask: torch.Tensor
    documents: PackedDocuments

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            self.loss_mask.to(device),
            self.documents.to(device),
        )


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

    def tokens(self, sample: int) -> int:
        """Tokens of that pack, padding not counted."""
        return len(self._table["input_ids"][self.index(sample)])

    def uuids(self, sample: int) -> list[str]:
        """The documents of that pack."""
        uuids: list[str] = self._table["uuids"][self.index(sample)].as_py()
        return uuids

    def micro_batch(self, sample: int) -> MicroBatch:
        """That pack as tensors."""
        index = self.index(sample)
        ids = self._table["input_ids"][index].values.to_numpy()
        targets = self._table["loss_mask"][index].values.to_numpy(zero_copy_only=False)
        lengths = self._table["document_lengths"][index].values.to_numpy()
        if not self._isolate:
            lengths = np.array([len(ids)])
        return make_micro_batch(ids, targets, lengths, self.context_length)

    def micro_batches(self, samples: range) -> Iterator[MicroBatch]:
        """The micro-batches of one step on one data-parallel rank."""
        return (self.micro_batch(sample) for sample in samples)


def make_micro_batch(
    ids: NDArray[np.int32], targets: NDArray[np.bool_], lengths: NDArray[np.int32], context_length: int
) -> MicroBatch:
    """A pack as tensors, padded to the context length.

    Args:
        ids: token ids of all documents, [tokens].
        targets: whether the loss falls on predicting each token, [tokens].
        lengths: documents' lengths, [documents], adding up to `tokens`.
    """
    padding = context_length - len(ids)
    input_ids = torch.from_numpy(np.pad(ids, (0, padding)).astype(np.int64))
    # Position i predicts token i + 1; a document's last position would predict the next document's first, so it is masked.
    labels = input_ids.roll(-1)
    loss_mask = torch.from_numpy(np.pad(targets, (0, padding)).astype(np.float32)).roll(-1)
    loss_mask[torch.from_numpy(lengths.astype(np.int64)).cumsum(0) - 1] = 0.0
    loss_mask[len(ids) :] = 0.0
    all_lengths = torch.tensor([*lengths.tolist(), *([padding] if padding else [])])
    return MicroBatch(
        input_ids=input_ids[None],
        labels=labels[None],
        position_ids=position_ids(all_lengths)[None],
        loss_mask=loss_mask[None],
        documents=packed_documents(all_lengths),
    )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
