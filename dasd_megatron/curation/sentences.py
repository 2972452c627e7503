"""Splits a response into consecutive sentences that partition its bytes exactly."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.tokenization.response_format import CLOSE, MARKUP, OPEN
from dasd_megatron.utils.errors import UserError


class SentenceSplitter:
    """Ends a sentence after each match of `sentence_end`, and before `</think>`: the answer is a sentence of its own."""

    def __init__(self, sentence_end: str) -> None:
        try:
            self._end = re.compile(f"(?:{sentence_end})|(?={re.escape(CLOSE)})")
        except re.error as error:
            raise UserError(f"sentence_end: not a regular expression: {error}") from None

    def starts(self, text: str) -> list[int]:
        """Byte offset where each sentence starts; the first is 0, each ends where the next starts. Empty for no text."""
        if not text:
            return []
        starts, reached, byte = [0], 0, 0
        for match in self._end.finditer(text):
            end = match.end()
            # Markup alone is no sentence: it goes with what follows.
            if end >= len(text) or text[reached:end].strip() in ("", OPEN, CLOSE):
                continue
            byte += len(text[reached:end].encode())
            reached = end
            starts.append(byte)
        return starts

    def split(self, text: str) -> list[str]:
        """The sentences themselves; joined they are the text."""
        data, starts = text.encode(), self.starts(text)
        return [data[start:end].decode() for start, end in pairwise([*starts, len(data)])]


def sentence_of_tokens(token_starts: ArrayLike, sentence_starts: ArrayLike) -> NDArray[np.int64]:
    """Number of the sentence in which each token starts; -1 for markup. The end of turn belongs to the last sentence."""
    starts = np.asarray(token_starts, np.int64)
    found = np.searchsorted(np.asarray(sentence_starts, np.int64), starts, side="right") - 1
    return np.where(starts == MARKUP, -1, found)
