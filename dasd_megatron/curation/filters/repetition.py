"""Filters of degenerate repetition in a response (paper, section 2.2; the measures and limits are ours)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from dasd_megatron.curation.filters.filter import Filter, StudentView

# Odd, so that multiplying by it loses no bits.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def repeated_ngram_share(tokens: ArrayLike, size: int) -> float:
    """Share of the n-grams of `tokens` that have occurred before, told apart by 64-bit hashes; 0 where there is none."""
    ids = np.asarray(tokens, np.uint64) + np.uint64(1)
    count = len(ids) - size + 1
    if count <= 0:
        return 0.0
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes = (hashes + ids[place : place + count]) * _BASE
        hashes ^= hashes >> np.uint64(29)
    return 1 - len(np.unique(hashes)) / count


def most_repeats(parts: Iterable[str], min_chars: int) -> int:
    """How often the most frequent part of at least `min_chars` characters occurs."""
    counts = Counter(part for part in (raw.strip() for raw in parts) if len(part) >= min_chars)
    return max(counts.values(), default=0)


class RepeatedNgramsFilter(Filter):
    """Too large a share of n-grams that have occurred before."""

    def reason(self, response: StudentView) -> str | None:
        """`repeated_ngrams`."""
        limits = self.setup.limits
        share = repeated_ngram_share(response.response_ids, limits.ngram_size)
        return "repeated_ngrams" if share > limits.max_repeated_ngrams else None


class RepeatedSentencesFilter(Filter):
    """One sentence too many times."""

    def reason(self, response: StudentView) -> str | None:
        """`repeated_sentences`."""
        limits = self.setup.limits
        times = most_repeats(self.setup.splitter.split(response.text), limits.min_repeated_chars)
        return "repeated_sentences" if times > limits.max_sentence_repeats else None


class RepeatedParagraphsFilter(Filter):
    """One paragraph too many times."""

    def reason(self, response: StudentView) -> str | None:
        """`repeated_paragraphs`."""
        limits = self.setup.limits
        times = most_repeats(re.split(r"\n\s*\n", response.text), limits.min_repeated_chars)
        return "repeated_paragraphs" if times > limits.max_paragraph_repeats else None
