"""Splits a response into consecutive sentences that partition its bytes exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.tokenization.response_format import CLOSE, OPEN
from dasd_megatron.tokenization.token_bytes import byte_offsets
from dasd_megatron.utils.errors import UserError

_NO_SENTENCE = frozenset(("", OPEN, CLOSE))


class SentenceSplitter:
    """Ends a sentence after each match of `sentence_end`, and before `</think>`: the answer is a sentence of its own.

    Sentences of fewer than `min_bytes`, and markup alone, are joined to the next one, the last of the reasoning or of the answer
    to the one before.
    """

    def __init__(self, sentence_end: str, min_bytes: int = 0) -> None:
        try:
            self._end = re.compile(sentence_end)
        except re.error as error:
            raise UserError(f"sentence_end: not a regular expression: {error}") from None
        self._min_bytes = min_bytes

    def starts(self, text: str) -> list[int]:
        """Byte offset where each sentence starts; the first is 0, each ends where the next starts. Empty for no text."""
        if not text:
            return []
        offsets: Sequence[int] = range(len(text) + 1) if text.isascii() else byte_offsets(text).data
        close = max(text.find(CLOSE), 0)
        reasoning = [] if _is_markup(text[:close]) else self._ends(text, 0, close, offsets)
        ends = [*reasoning, *self._ends(text, reasoning[-1] if reasoning else 0, len(text), offsets)]
        return [0, *(offsets[end] for end in ends[:-1])]

    def _ends(self, text: str, first: int, last: int, offsets: Sequence[int]) -> list[int]:
        """Where the sentences of the characters from `first` to `last` end, in characters."""
        ends, reached, min_bytes = [], first, self._min_bytes
        for match in self._end.finditer(text, first, last):
            end = match.end()
            if offsets[end] - offsets[reached] >= min_bytes and text[reached:end].strip() not in _NO_SENTENCE:
                ends.append(end)
                reached = end
        if offsets[last] - offsets[reached] < self._min_bytes or _is_markup(text[reached:last]):
            del ends[-1:]  # joined to the one before
        return [*ends, last]

    def split(self, text: str) -> list[str]:
        """The sentences themselves; joined they are the text."""
        data, starts = text.encode(), self.starts(text)
        return [data[start:end].decode() for start, end in pairwise([*starts, len(data)])]


def _is_markup(text: str) -> bool:
    return text.strip() in _NO_SENTENCE


def sentence_of_tokens(token_starts: ArrayLike, sentence_starts: ArrayLike) -> NDArray[np.int64]:
    """Number of the sentence in which each token starts; -1 for markup. The end of turn belongs to the last sentence."""
    # The first sentence starts at 0, and MARKUP is before that.
    found: NDArray[np.int64] = np.searchsorted(np.asarray(sentence_starts), np.asarray(token_starts), side="right")
    found -= 1
    return found
