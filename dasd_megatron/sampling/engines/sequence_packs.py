"""Sequences one after another in packs, and the scores of packs back to the sequences. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.sampling.engines.engine import TokenScores


@dataclass(frozen=True)
class SequencePack:
    """Sequences that one forward pass goes over.

    Attributes:
        numbers: of the sequences, among those that were given.
        lengths: of the sequences, in tokens.
        ids: int32 [tokens].
    """

    numbers: Sequence[int]
    lengths: Sequence[int]
    ids: NDArray[np.int32]


def packed_by_length(sequences: Sequence[Sequence[int]], limit: int) -> list[SequencePack]:
    """Packs of at most `limit` tokens, the longest sequences first; a longer sequence is a pack of its own.

    Sequences of similar length come together. Those of less than two tokens, in which there is nothing to score, are left out.
    """
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    packs: list[list[int]] = []
    filled = limit
    for number in order:
        length = len(sequences[number])
        if length < 2:
            break
        if filled + length > limit:
            packs.append([])
            filled = 0
        packs[-1].append(number)
        filled += length
    return [_pack(sequences, numbers) for numbers in packs]


def _pack(sequences: Sequence[Sequence[int]], numbers: list[int]) -> SequencePack:
    parts = [np.asarray(sequences[number], np.int32) for number in numbers]
    return SequencePack(numbers, [len(part) for part in parts], np.concatenate(parts))


class CollectedScores:
    """The scores of sequences, from what ranks say of tokens of packs."""

    def __init__(self, sequences: Sequence[Sequence[int]], brier: bool) -> None:
        self._found: list[TokenScores | None] = [None] * len(sequences)
        self._rows = 3 if brier else 2
        for number, sequence in enumerate(sequences):
            if len(sequence) < 2:
                self._found[number] = self._of(np.zeros((self._rows, 0), np.float32))

    def add(self, pack: SequencePack, pieces: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
        """All that is known of a pack: which of its tokens, and their scores, float32 [2 or 3, tokens]: log-probability, rank,
        and Brier score."""
        scores = np.full((self._rows, len(pack.ids)), np.nan, np.float32)
        for tokens, of_tokens in pieces:
            scores[:, tokens] = of_tokens
        ends = accumulate(pack.lengths)
        for number, length, end in zip(pack.numbers, pack.lengths, ends, strict=True):
            self._found[number] = self._of(scores[:, end - length + 1 : end])

    def all(self) -> list[TokenScores]:
        """Of every sequence, in order."""
        found = [scores for scores in self._found if scores is not None]
        assert len(found) == len(self._found), "packs are missing"
        return found

    def _of(self, scores: NDArray[np.float32]) -> TokenScores:
        assert not np.isnan(scores[1]).any(), "tokens are missing"
        return TokenScores(scores[0].copy(), scores[1].astype(np.int32), scores[2].copy() if self._rows == 3 else None)
