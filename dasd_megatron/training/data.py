"""Which packs each optimizer step trains on: the same for every layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.shard_reader import ShardReader
from dasd_megatron.megatron_model.micro_batch import Pack

# Shards whose files are open at a time; their packs are read as they are needed.
OPEN_SHARDS = 16


class PackDataset:
    """The packs of an artifact, in an order that is reshuffled every epoch and depends on nothing but the seed."""

    def __init__(self, artifact: Artifact, seed: int, isolate_documents: bool, table: str = "packs") -> None:
        self.context_length: int = artifact.manifest["context_length"]
        self._seed = seed
        self._isolate = isolate_documents
        shards = [shard["rows"] for shard in artifact.shards(table)]
        self._starts = np.concatenate([[0], np.cumsum(shards, dtype=np.int64)])
        self._tokens = _readers(artifact, table, ["input_ids", "loss_mask"])
        self._documents = _readers(artifact, table, ["document_lengths", "uuids"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def index(self, sample: int) -> int:
        """The pack that is the `sample`-th to be trained on, counted over all epochs."""
        epoch, place = divmod(sample, len(self))
        return int(_order(self._seed, epoch, len(self))[place])

    def pack(self, sample: int) -> Pack:
        """The `sample`-th pack."""
        row = self._row(self._tokens, sample)
        ids = row["input_ids"][0].values.to_numpy()
        targets = row["loss_mask"][0].values.to_numpy(zero_copy_only=False)
        return Pack(ids, targets, self.attended_lengths(sample))

    def attended_lengths(self, sample: int) -> list[int]:
        """Tokens of each document of that pack; of the whole pack where documents aren't isolated."""
        lengths: list[int] = self._row(self._documents, sample)["document_lengths"][0].as_py()
        return lengths if self._isolate else [sum(lengths)]

    def uuids(self, sample: int) -> list[str]:
        """The documents of that pack."""
        uuids: list[str] = self._row(self._documents, sample)["uuids"][0].as_py()
        return uuids

    def _row(self, readers: Callable[[int], ShardReader], sample: int) -> pa.Table:
        index = self.index(sample)
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return readers(shard).take(np.array([index - self._starts[shard]]))


class HeldOutPacks:
    """Packs that aren't trained on, to measure the loss with: always the same."""

    def __init__(self, artifact: Artifact, seed: int, isolate_documents: bool, most: int) -> None:
        """At most so many."""
        self._packs = PackDataset(artifact, seed, isolate_documents, "held_out")
        self._count = min(most, len(self._packs))

    def __len__(self) -> int:
        return self._count

    def share(self, rank: int, ranks: int, multiple: int = 1) -> list[Pack]:
        """A data-parallel rank's packs, as many as every other's, and a multiple of something: what is missing is filled up with
        packs without targets."""
        filled = range(-(-self._count // (ranks * multiple)) * ranks * multiple)
        packs = ((sample < self._count, self._packs.pack(sample % self._count)) for sample in filled[rank::ranks])
        return [Pack(pack.ids, pack.targets & counts, pack.lengths) for counts, pack in packs]


def _readers(artifact: Artifact, table: str, columns: list[str]) -> Callable[[int], ShardReader]:
    """Readers of an artifact's shards of packs; those used last stay open."""
    return lru_cache(maxsize=OPEN_SHARDS)(lambda shard: artifact.reader(table, shard, columns))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
