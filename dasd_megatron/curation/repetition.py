"""Measures of degenerate repetition in a response (paper, section 2.2; the measures and limits are ours)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dasd_megatron.curation.sentences import SentenceSplitter


def repeated_ngram_share(tokens: Sequence[int], size: int) -> float:
    """Share of the n-grams of `tokens` that have occurred before; 0 where there is none."""
    count = len(tokens) - size + 1
    if count <= 0:
        return 0.0
    distinct = len({tuple(tokens[start : start + size]) for start in range(count)})
    return 1 - distinct / count


def most_repeats(parts: Iterable[str], min_chars: int) -> int:
    """How often the most frequent part of at least `min_chars` characters occurs."""
    counts = Counter(part for part in (raw.strip() for raw in parts) if len(part) >= min_chars)
    return max(counts.values(), default=0)


def repetition_problem(
    text: str, tokens: Sequence[int], splitter: SentenceSplitter, limits: Mapping[str, Any]
) -> str | None:
    """The first limit of the recipe's `filters` section that the response breaks, as a reason, or None."""
    if repeated_ngram_share(tokens, limits["ngram_size"]) > limits["max_repeated_ngrams"]:
        return "repeated_ngrams"
    if most_repeats(splitter.split(text), limits["min_repeated_chars"]) > limits["max_sentence_repeats"]:
        return "repeated_sentences"
    if most_repeats(re.split(r"\n\s*\n", text), limits["min_repeated_chars"]) > limits["max_paragraph_repeats"]:
        return "repeated_paragraphs"
    return None
