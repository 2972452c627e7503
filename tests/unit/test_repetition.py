"""Degenerate repetition is told from text that merely repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.curation.filters import repetition
from dasd_megatron.curation.filters.filter import FilterSetup, NoOptions, StudentView
from dasd_megatron.curation.filters.repetition import (
    MIN_OCCURRENCES,
    SEQUENCE,
    RepeatedFilter,
    recurring_words,
    repeated_words,
    words_of,
)
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

# 1,000 words, each of them once.
VARIED = " ".join(
    f"word{'abcdefghij'[n // 100]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyzabcd'[n % 10]}" for n in range(1000)
)
# What someone who is lost says again and again, 25 words each.
LOOP_STEPS = [
    f"But {name} of the rows is not what the examples say, so let me look at the question again and see what the "
    f"order of {name} really means here. "
    for name in ("the sum", "the first", "the last", "the product", "the index")
]


def sum_of(step: int) -> str:
    """Of 26 words, all but the numbers the same in each step."""
    terms = f"So the sum of the first {step} terms is {step * 97}, and when the next one, {step * 13}, is added to it "
    return terms + f"we get {step * 110}, as it must be."


CODE = "for (int i = 0; i < n; i++) {\n    total += values[i];\n}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (VARIED, None),
        (VARIED + " Wait. Hmm." * 1500, "repeated"),
        (VARIED + " and so on" * 2500, "repeated"),
        (VARIED + "".join(f"\nCase {n}: {n} + 1 = {n + 1}, which is not prime." for n in range(90)), "repeated"),
        ("".join(f"{n}. It holds for this number.\n" for n in range(900)), "repeated"),
        (VARIED + " So the answer is 42." * 60 + " Let me think again. " + VARIED[:2000], "repeated"),
        ("所以答案是四十二。" * 100, "repeated"),
        # A loop whose steps come in changing order.
        ("".join(LOOP_STEPS[(n * n + n // 7) % 5] for n in range(120)), "repeated"),
        (VARIED + "".join(LOOP_STEPS[(n * n + n // 7) % 5] for n in range(20)), None),
        # A calculation that takes its steps in one form, with thoughts between them.
        ("".join(f"{sum_of(n)} {VARIED[n * 40 : n * 40 + 90]}\n" for n in range(120)), None),
        # A list of numbers in a long text, equal sentences here and there, code in fences, a short loop that ended.
        (VARIED + " " + ", ".join(map(str, range(100))), None),
        (" ".join(f"{VARIED[start : start + 200]} Let me check." for start in range(0, 6000, 200)), None),
        (VARIED + "\n```c\n" + CODE * 100 + "```\nThat is all.", None),
        (VARIED + "\n```c\n" + CODE * 100, None),
        (VARIED + " Wait. Hmm." * 30, None),
        # Three backticks in a sentence hide nothing; nor does a fence that isn't closed, or what is looped in it.
        (VARIED + " It begins with ``` then." + " So it is one." * 400 + "</think>\n```\nx\n```", "repeated"),
        (VARIED + "\n```\ntotal" + "</think>" + " So it is one." * 400, "repeated"),
        (VARIED + "\n```\n" + "x = x + 1\n" * 2000 + "```\n", "repeated"),
        (VARIED + "a" * 20_000, "repeated"),
        (VARIED + "hah" * 10_000, "repeated"),
    ],
    ids=lambda value: f"{value[-40:]}" if value else "kept",
)
def test_what_is_degenerate(student_tokenizer: ChatTokenizer, text: str, reason: str | None) -> None:
    setup = FilterSetup(FiltersConfig(), student_tokenizer, SentenceSplitter(r"\n"), max_document_tokens=10_000)
    view = StudentView({}, text, [], np.zeros(0, np.int32))
    assert RepeatedFilter(setup, NoOptions()).reason(view) == reason


def test_numbers_are_alike() -> None:
    exact, masked = words_of("a 12 b 345 a")
    assert (exact.tolist(), masked.tolist()) == ([0, 1, 2, 3, 0], [0, 1, 2, 1, 0])
    assert words_of("")[0].tolist() == []


def by_hand(words: list[int]) -> int:
    """Words of the longest stretch, by looking at every start and period."""
    longest = 0
    for period in range(1, len(words) + 1):
        for start in range(len(words)):
            end = start + period
            while end < len(words) and words[end] == words[end - period]:
                end += 1
            if end <= len(words) and end - start >= repetition.MIN_REPEATS * period:
                longest = max(longest, end - start)
    return longest


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(0, 12),
    st.integers(1, 50),
)
def test_a_long_stretch_is_found_wherever_it_is(before: list[int], part: list[int], times: int, least: int) -> None:
    words = [*before, *part * times, *before]
    found = repeated_words(np.array(words, np.int32), least)
    assert bool(found) == (by_hand(words) >= least)
    assert not found or least <= found <= by_hand(words)


@given(st.lists(st.integers(0, 1), max_size=60), st.integers(0, 14), st.lists(st.integers(2, 4), max_size=60))
def test_recurring_sequences_are_counted_wherever_they_are(before: list[int], times: int, after: list[int]) -> None:
    part = [*range(10, 35), *before]
    words = np.array([*before, *part * times, *after], np.int32)
    found = {tuple(words[place : place + SEQUENCE].tolist()) for place in range(len(words) - SEQUENCE + 1)}
    covered = set()
    for sequence in found:
        places = [p for p in range(len(words) - SEQUENCE + 1) if tuple(words[p : p + SEQUENCE].tolist()) == sequence]
        if len(places) >= MIN_OCCURRENCES:
            covered |= {place + offset for place in places for offset in range(SEQUENCE)}
    assert recurring_words(words) == len(covered)
