"""Training documents of filtered responses: how long each is, and their tokens when they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.columns import lists

# Documents whose tokens are read at a time, and most of a window: packing compares each with all others.
BATCH, WINDOW_DOCUMENTS = 256, 16_384


@dataclass(frozen=True)
class DocumentIndex:
    """Where documents are, and how long; no tokens.

    Attributes:
        source, shard, row, length: [documents]; `source` is the number of the artifact, `length` counts prompt and response.
    """

    source: NDArray[np.int32]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    length: NDArray[np.int32]

    @classmethod
    def of(cls, sources: Sequence[tuple[Artifact, NDArray[np.bool_] | None]]) -> DocumentIndex:
        """Of several artifacts' filtered responses, one after another; of each all, or those that are marked True."""
        parts: list[NDArray[np.int32]] = [np.zeros((0, 4), np.int32)]
        for number, (artifact, chosen) in enumerate(sources):
            passed = 0
            for shard in range(len(artifact.shards("responses"))):
                lengths = _lengths(artifact, shard)
                rows = np.arange(len(lengths), dtype=np.int32)
                if chosen is not None:
                    rows = rows[chosen[passed : passed + len(lengths)]]
                passed += len(lengths)
                constants = [np.full(len(rows), constant, np.int32) for constant in (number, shard)]
                parts.append(np.stack([*constants, rows, lengths[rows]], axis=1))
        return cls(*np.concatenate(parts).T)

    def __len__(self) -> int:
        return len(self.row)

    def windows(self, most_tokens: int) -> list[DocumentIndex]:
        """Consecutive documents of about equally many tokens in each, about that many at most."""
        ends = np.cumsum(np.maximum(self.length, most_tokens // WINDOW_DOCUMENTS), dtype=np.int64)
        total = int(ends[-1]) if len(self) else 0
        count = -(-total // most_tokens)
        # Where the next window begins: after as many tokens as the windows before may have.
        bounds = [
            0,
            *(int(np.searchsorted(ends, total * n // count, side="right")) for n in range(1, count)),
            len(self),
        ]
        pairs = itertools.pairwise(bounds)
        return [DocumentIndex(*(part[a:b] for part in self._parts())) for a, b in pairs if b > a]

    def _parts(self) -> tuple[NDArray[np.int32], ...]:
        return self.source, self.shard, self.row, self.length


@dataclass(frozen=True)
class DocumentTokens:
    """The tokens of documents, one after another.

    Attributes:
        ids: int32 [tokens].
        first_targets: int32 [documents], place in each from which on its tokens are targets.
        starts: int64 [documents + 1], where each begins, and the end.
        uuids: [documents].
    """

    ids: NDArray[np.int32]
    first_targets: NDArray[np.int32]
    starts: NDArray[np.int64]
    uuids: list[str]


def read_documents(index: DocumentIndex, artifacts: Sequence[Artifact], mask_prefix: bool) -> DocumentTokens:
    """The documents of an index, in its order."""
    starts = np.concatenate([[0], np.cumsum(index.length, dtype=np.int64)])
    ids, first_targets = np.empty(starts[-1], np.int32), np.empty(len(index), np.int32)
    uuids: list[str] = []
    for batch in _batches(index, artifacts, mask_prefix):
        prompts, responses = lists(batch, "student_prompt_ids"), lists(batch, "student_token_ids")
        masked = _tokens_of_prefixes(batch) if mask_prefix else [0] * len(batch)
        for number, (prompt, response, prefix) in enumerate(zip(prompts, responses, masked, strict=True), len(uuids)):
            start, end = starts[number], starts[number + 1]
            middle = start + len(prompt)
            ids[start:middle], ids[middle:end] = prompt, response
            first_targets[number] = len(prompt) + prefix
        uuids += batch["uuid"].to_pylist()
    return DocumentTokens(ids, first_targets, starts, uuids)


def _batches(index: DocumentIndex, artifacts: Sequence[Artifact], mask_prefix: bool) -> Iterator[pa.Table]:
    columns = ["uuid", "student_prompt_ids", "student_token_ids"]
    columns += ["prefix_bytes", "student_token_starts"] if mask_prefix else []
    place = 0
    while place < len(index):
        source, shard = index.source[place], index.shard[place]
        same = (index.source[place:] == source) & (index.shard[place:] == shard)
        count = len(same) if same.all() else int(np.argmin(same))
        reader = artifacts[source].reader("responses", int(shard), columns)
        for first in range(place, place + count, BATCH):
            yield reader.take(index.row[first : min(first + BATCH, place + count)])
        place += count


def _tokens_of_prefixes(batch: pa.Table) -> Iterator[int]:
    """Of each response, how many tokens begin in what the student wrote."""
    for starts, prefix in zip(lists(batch, "student_token_starts"), batch["prefix_bytes"].to_pylist(), strict=True):
        yield int(np.searchsorted(starts, prefix))


def _lengths(artifact: Artifact, shard: int) -> NDArray[np.int32]:
    table = artifact.read("responses", ["student_prompt_tokens", "student_tokens"], shard)
    lengths: NDArray[np.int32] = table["student_prompt_tokens"].to_numpy() + table["student_tokens"].to_numpy()
    return lengths
