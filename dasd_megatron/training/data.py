"""Which packs each optimizer step trains on: the same for every layout."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.megatron_model.micro_batch import Pack


class PackDataset:
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


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
