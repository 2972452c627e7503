"""Splits a response into consecutive sentences that partition its bytes exactly."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.tokenization.response_format import CLOSE, MARKUP, OPEN
from dasd_megatron.utils.errors import UserError


class SentenceSplitter:
    """Ends a sentence after each match of `sentence_end`, and before `</think>`: the answer is a sentence of its own.

    Sentences of fewer than `min_bytes` are joined to the next one, the last of the reasoning or of the answer to the one before.
    """

    def __init__(self, sentence_end: str, min_bytes: int = 0) -> None:
        try:
            self._end = re.compile(f"(?:{sentence_end})|(?={re.escape(CLOSE)})")
        except re.error as error:
            raise UserError(f"sentence_end: not a regular expression: {error}") from None
        self._min_bytes = min_bytes

    def starts(self, text: str) -> list[int]:
        """Byte offset where each sentence starts; the first is 0, each ends where the next starts. Empty for no text."""
        if not text:
            return []
        starts, sizes, byte = [0], [], 0
        close, reached = text.find(CLOSE), 0
        part = 0  # number of the first sentence of the reasoning, or of the answer
        for match in self._end.finditer(text):
            end = match.end()
            # Markup alone is no sentence: it goes with what follows.
            if end >= len(text) or text[reached:end].strip() in ("", OPEN, CLOSE):
                part = len(starts) - 1 if end == close else part
                continue
            size = len(text[reached:end].encode())
            if end == close:
                sizes.append(size)
                self._join_last(starts, sizes, part)
                part = len(starts)
            elif size < self._min_bytes:
                continue
            else:
                sizes.append(size)
            byte += size
            reached = end
            starts.append(byte)
        sizes.append(len(text[reached:].encode()))
        self._join_last(starts, sizes, part)
        return starts

    def _join_last(self, starts: list[int], sizes: list[int], part: int) -> None:
        """Joins the last sentence to the one before where it's short, and not the first of its part."""
        if sizes[-1] < self._min_bytes and len(starts) - 1 > part:
            starts.pop()
            sizes[-2:] = [sum(sizes[-2:])]

    def split(self, text: str) -> list[str]:
        """The sentences themselves; joined they are the text."""
        data, starts = text.encode(), self.starts(text)
        return [data[start:end].decode() for start, end in pairwise([*starts, len(data)])]


def sentence_of_tokens(token_starts: ArrayLike, sentence_starts: ArrayLike) -> NDArray[np.int64]:
    """Number of the sentence in which each token starts; -1 for markup. The end of turn belongs to the last sentence."""
    starts = np.asarray(token_starts, np.int64)
    found = np.searchsorted(np.asarray(sentence_starts, np.int64), starts, side="right") - 1
    return np.where(starts == MARKUP, -1, found)
