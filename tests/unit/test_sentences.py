"""Sentences, and teacher's and student's probabilities of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.curation.sentence_probabilities import sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.utils.errors import UserError

DEFAULT_END = Recipe.model_fields["sentence_end"].default


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is 3.14 cm. Right? Yes!", ["It is 3.14 cm. ", "Right? ", "Yes!"]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("<think>\na\nb</think>\n\nc. d", ["<think>\na\n", "b", "</think>\n\nc. ", "d"]),
        ('He said "no." Then left.', ['He said "no." ', "Then left."]),
        ("यह ठीक है। हाँ।", ["यह ठीक है।", " हाँ।"]),
        ("半角｡全角．終", ["半角｡", "全角．", "終"]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert SentenceSplitter(DEFAULT_END).split(text) == sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. First we add. 2. Then, e.g. 3 of them.", ["1. First we add. ", "2. Then, e.g. 3 of them."]),
        ("So it is done now. OK.", ["So it is done now. OK."]),
        ("<think>\nAll is well here.\nYes.\n</think>\n\n42", ["<think>\nAll is well here.\nYes.\n", "</think>\n\n42"]),
        ("<think>a</think>b", ["<think>a", "</think>b"]),
        ("<think>All is well here. \n</think>42", ["<think>All is well here. \n", "</think>42"]),
        ("a. b.", ["a. b."]),
    ],
)
def test_short_sentences_are_joined(text: str, sentences: list[str]) -> None:
    """To the next one; the last to the one before, but never the answer to the reasoning."""
    assert SentenceSplitter(DEFAULT_END, min_bytes=12).split(text) == sentences


@given(st.text(alphabet="ab。. \n", max_size=60), st.text(alphabet="ab。. \n", max_size=60), st.integers(0, 20))
def test_sentences_partition_the_text_whatever_the_minimum(thinking: str, answer: str, least: int) -> None:
    text = f"<think>{thinking}</think>{answer}"
    splitter = SentenceSplitter(DEFAULT_END, least)
    sentences = splitter.split(text)
    assert "".join(sentences) == text
    close = next((n for n, sentence in enumerate(sentences) if sentence.lstrip().startswith("</think>")), 0)
    assert close or not thinking.strip()
    for part in (sentences[:close], sentences[close:]):
        assert len(part) <= 1 or min(len(sentence.encode()) for sentence in part) >= least


def test_toy_sentences() -> None:
    assert SentenceSplitter("[;!]").split("<think>3*4=2;2+4=7!2+4=6;</think>6") == [
        "<think>3*4=2;",
        "2+4=7!",
        "2+4=6;",
        "</think>6",
    ]


def test_bad_sentence_pattern() -> None:
    with pytest.raises(UserError, match="sentence_end: not a regular expression"):
        SentenceSplitter("(")


def test_sentence_probabilities_are_geometric_means() -> None:
    row = {
        "text": "ab;c",
        "token_starts": [0, 1, 2, 3, 4],  # a b ; c end-of-turn
        "logprobs": [math.log(p) for p in (0.9, 0.4, 0.5, 0.3, 0.8)],
        "student_token_starts": [0, 3, 4],  # "ab;" c end-of-turn
        "student_logprobs": [math.log(p) for p in (0.2, 0.6, 0.7)],
    }
    found = sentence_probabilities(row, SentenceSplitter(";"))
    np.testing.assert_allclose(found.teacher, [(0.9 * 0.4 * 0.5) ** (1 / 3), math.sqrt(0.3 * 0.8)])
    np.testing.assert_allclose(found.student, [0.2, math.sqrt(0.6 * 0.7)])


def test_markup_counts_on_neither_side() -> None:
    """The student is no likelier to be surprised in the first sentence because it never writes `<think>` by itself."""
    random = np.random.default_rng(0)
    first, others = [], []
    for _ in range(200):
        text = "<think>\nOne two three.\nFour five six.\nSeven eight nine.\n</think>\n\nTen."
        # A token a byte, but for the markup: the student writes it, the teacher's (harmony) is made of other tokens.
        opening, closing = len("<think>\n"), text.index("\n</think>")
        content = [n for n in range(opening, len(text)) if not closing <= n < text.index("Ten")]
        logprobs = -random.exponential(0.5, len(content))
        row = {
            "text": text,
            "token_starts": [-1, -1, *content, len(text)],
            "logprobs": [-0.1, -0.1, *logprobs, -0.1],
            "student_token_starts": [0, 7, *content, closing, closing + 1, closing + 9, len(text)],
            "student_logprobs": [-14.0, -20.0, *(logprobs * random.uniform(0.5, 2)), -14.0, -20.0, -9.0, -0.1],
        }
        for mean in ("token", "byte"):
            kinds = sentence_probabilities(row, SentenceSplitter(DEFAULT_END), mean).kinds(0.1)
            first.append(kinds[0] == "Teacher")
            others += [kind == "Teacher" for kind in kinds[1:]]
    assert 0.05 < np.mean(others) < 0.95
    assert abs(np.mean(first) - np.mean(others)) < 0.1


@given(st.lists(st.integers(0, 999_999), min_size=1, max_size=20), st.floats(-3, 0))
def test_means_per_byte_are_unbiased_on_digits(numbers: list[int], surprise: float) -> None:
    """A student that cuts a number into digits, a teacher into three at a time, at equal probability of the whole."""
    text = "".join(f"It is {number}.\n" for number in numbers)
    places = [n for n, character in enumerate(text)]
    teacher = [n for n in places if not (text[n].isdigit() and text[n - 1].isdigit())]
    shares = np.diff([*teacher, len(text)])
    row = {
        "text": text,
        "token_starts": teacher,
        "logprobs": surprise * shares,
        "student_token_starts": places,
        "student_logprobs": [surprise] * len(places),
    }
    by_byte = sentence_probabilities(row, SentenceSplitter(DEFAULT_END), "byte")
    np.testing.assert_allclose(by_byte.difference, 0, atol=1e-9)
    np.testing.assert_allclose(by_byte.teacher, np.exp(surprise))


def test_markup_and_tokenless_sentences_are_left_out() -> None:
    row = {
        "text": "a;b;c",
        "token_starts": [-1, 0, 2, 4],
        "logprobs": [-9.0, -0.1, -0.2, -0.3],
        "student_token_starts": [0, 4],  # no token starts in "b;"
        "student_logprobs": [-1.0, -2.0],
    }
    found = sentence_probabilities(row, SentenceSplitter(";"))
    np.testing.assert_allclose(found.teacher, np.exp([-0.1, -0.3]))
