"""The filter `repeated`: degenerate repetition in a response (paper, section 2.2; the measure and its limits are ours)."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.curation.filters.filter import Filter, StudentView

# Code repeats itself by its nature, and a response that shows some is no loop. A fence begins a line; the reasoning ends it.
_FENCED = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```|(?=</think>)|\Z)", re.DOTALL | re.MULTILINE)
# Of all words, code included, how many may be in one stretch that repeats exactly.
MAX_CODE_SHARE = 0.8
_DIGITS = re.compile(r"\d+")
# A word (of an endless one, parts), a symbol, or a character of a script that has no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,32}|[^\w\s]")
# Words of the longest stretch that may be repeated, and how often it must be, one after another.
MAX_PERIOD, MIN_REPEATS = 128, 6
# Words of a sequence that recurs, and how often it must.
SEQUENCE, MIN_OCCURRENCES = 20, 10
_FACTOR = np.uint64(6364136223846793005)  # of a polynomial hash modulo 2^64; odd, so that no word is lost


def words_of(text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A number for each word of a text, equal for equal words, [words], and again with all numbers of the text alike."""
    words = _WORD.findall(text)
    distinct = list(dict.fromkeys(words))
    masked = _DIGITS.sub("0", " ".join(distinct)).split(" ") if words else []
    exact = np.fromiter(map(_numbers(distinct).__getitem__, words), np.int32, len(words))
    alike = np.fromiter(map(_numbers(masked).__getitem__, masked), np.int32, len(masked))
    return exact, alike[exact]


def _numbers(words: list[str]) -> dict[str, int]:
    """Each distinct word's number."""
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


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


def recurring_words(words: NDArray[np.int32]) -> int:
    """Words that are part of a sequence of SEQUENCE words which occurs MIN_OCCURRENCES times or more, wherever."""
    places = len(words) - SEQUENCE + 1
    if places < MIN_OCCURRENCES:
        return 0
    hashes = np.zeros(places, np.uint64)
    for word in range(SEQUENCE):
        hashes = hashes * _FACTOR + words[word : word + places].astype(np.uint64)
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    frequent = np.flatnonzero(counts[inverse] >= MIN_OCCURRENCES)
    # +1 where such a sequence begins, -1 behind it.
    steps = np.zeros(len(words) + 1, np.int32)
    steps[frequent] += 1
    steps[frequent + SEQUENCE] -= 1
    return int(np.count_nonzero(np.cumsum(steps)[:-1]))


def is_repeated(text: str, limits: FiltersConfig) -> bool:
    """Whether too large a share of a text says the same over and over.

    One after another, with whatever numbers ("Case 7 fails. Case 8 fails."); or wherever, then with the same numbers, as
    a long calculation takes its steps in one form.
    """
    prose = _FENCED.sub(" ", text)
    words, masked = words_of(prose)
    if repeated_words(masked, _least(limits.max_repeated_share, words, limits)):
        return True
    if recurring_words(words) >= _least(limits.max_recurring_share, words, limits):
        return True
    if 2 * len(prose) > len(text):  # that little code can't be so much of it
        return False
    words, _ = words_of(text)
    return repeated_words(words, _least(MAX_CODE_SHARE, words, limits)) > 0


def _least(share: float, words: NDArray[np.int32], limits: FiltersConfig) -> int:
    """How many words are too many."""
    return max(limits.min_repeated_words, math.ceil(share * len(words)))


class RepeatedFilter(Filter):
    """A response that says the same over and over."""

    def reason(self, response: StudentView) -> str | None:
        """`repeated`."""
        return "repeated" if is_repeated(response.text, self.setup.limits) else None
