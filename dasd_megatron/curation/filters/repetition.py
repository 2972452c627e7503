"""The filter `repeated`: degenerate repetition in a response (paper, section 2.2; the measure and its limits are ours)."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.curation.filters.filter import Filter, StudentView

# Code repeats itself by its nature, and a response that shows some is no loop.
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_DIGITS = re.compile(r"\d+")
# A word, a symbol, or a character of a script that has no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
# Words of the longest stretch that may be repeated, and how often it must be, one after another.
MAX_PERIOD, MIN_REPEATS = 128, 6


def words_of(text: str) -> NDArray[np.int32]:
    """A number for each word of a text, equal for equal words, [words]; numbers are all alike, fenced code is left out."""
    words = _WORD.findall(_DIGITS.sub("0", _FENCED.sub(" ", text)))
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int32, len(words))


def repeated_words(words: NDArray[np.int32], least: int) -> int:
    """Words of a stretch of at least `least` in which up to MAX_PERIOD words come MIN_REPEATS times in a row; 0 for none."""
    # In such a stretch all words but those of the last repeat are followed by their like one period later: at least this share,
    # so that one of the places `step` apart has `step` of them behind it.
    step = max(1, least * (MIN_REPEATS - 1) // MIN_REPEATS // 2)
    for place in range(0, len(words) - step, step):
        periods = np.flatnonzero(words[place + 1 : place + 1 + MAX_PERIOD] == words[place]) + 1
        for period in periods.tolist():
            following = words[place + period : place + period + step]
            if len(following) == step and np.array_equal(words[place : place + step], following):
                stretch = _stretch(words, place, period)
                if stretch >= max(least, MIN_REPEATS * period):
                    return stretch
    return 0


def _stretch(words: NDArray[np.int32], place: int, period: int) -> int:
    """Words around `place` that repeat with this period."""
    different = np.flatnonzero(words[period:] != words[:-period])
    after = int(np.searchsorted(different, place))
    first = int(different[after - 1]) + 1 if after else 0
    last = int(different[after]) if after < len(different) else len(words) - period
    return last - first + period


class RepeatedFilter(Filter):
    """Too large a share of a response says the same over and over, be it with other numbers each time."""

    def reason(self, response: StudentView) -> str | None:
        """`repeated`."""
        limits = self.setup.limits
        words = words_of(response.text)
        least = max(limits.min_repeated_words, math.ceil(limits.max_repeated_share * len(words)))
        return "repeated" if repeated_words(words, least) else None
