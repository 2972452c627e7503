"""Probabilities of teacher and student, sentence by sentence (paper, section 2.3; arXiv 2512.20908)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.curation.sentences import SentenceSplitter, sentence_of_tokens
from dasd_megatron.tokenization.response_format import CLOSE, OPEN

KINDS = ("Teacher", "Student", "Shared")
_MARKUP = re.compile(rf"{re.escape(OPEN)}|{re.escape(CLOSE)}")


@dataclass(frozen=True)
class SentenceProbabilities:
    """One response, sentence by sentence. Sentences in which either model starts no token are left out.

    Attributes:
        teacher: [sentences], geometric mean of the teacher's token probabilities.
        student: [sentences], the same of the student's own tokens.
        numbers: [sentences], which of the response's sentences they are.
    """

    teacher: NDArray[np.float64]
    student: NDArray[np.float64]
    numbers: NDArray[np.int64]

    @property
    def difference(self) -> NDArray[np.float64]:
        """p_T - p_S of each sentence, [sentences]."""
        return self.teacher - self.student

    def kinds(self, threshold: float) -> list[str]:
        """Teacher where p_T - p_S exceeds the threshold, Student where p_S - p_T does, else Shared.

        Before training, Shared holds the Boosted sentences too: only the distilled student tells them apart.
        """
        return [KINDS[0] if d > threshold else KINDS[1] if d < -threshold else KINDS[2] for d in self.difference]


def sentence_probabilities(
    row: Mapping[str, Any], splitter: SentenceSplitter, mean: Literal["token", "byte"] = "token"
) -> SentenceProbabilities:
    """Teacher's and student's probabilities of the sentences of one scored response (schema FILTERED + student_logprobs).

    Markup (`<think>`, `</think>` and white space around them) counts on neither side: the models write it in their own ways.
    """
    text, starts = row["text"], np.asarray(splitter.starts(row["text"]), np.int64)
    markup = _markup(text)
    sizes = None
    if mean == "byte":
        sizes = np.diff(starts, append=len(text.encode()))
        for first, last in markup:  # each lies in one sentence, or begins one
            sizes -= np.clip(
                np.minimum(np.append(starts[1:], len(text.encode())), last) - np.maximum(starts, first), 0, None
            )
    sides = []
    for logprobs, token_starts in (("logprobs", "token_starts"), ("student_logprobs", "student_token_starts")):
        places = np.asarray(row[token_starts])
        sentences = sentence_of_tokens(places, starts)
        for first, last in markup:
            sentences[(places >= first) & (places < last)] = -1
        sides.append(_mean_logprobs(row[logprobs], sentences, len(starts), sizes))
    teacher, student = sides
    both = ~(np.isnan(teacher) | np.isnan(student))
    # A probability of exactly 0 (underflow) would make the log-ratio infinite.
    tiny = np.finfo(np.float64).tiny
    found = [np.maximum(np.exp(side[both]), tiny) for side in (teacher, student)]
    return SentenceProbabilities(found[0], found[1], np.flatnonzero(both))


def _markup(text: str) -> list[tuple[int, int]]:
    """Where markup is: (first, last) byte of each, the last excluded."""
    spans = []
    for match in _MARKUP.finditer(text):
        before, after = text[: match.start()].rstrip(), text[match.end() :]
        last = len(text) - len(after.lstrip())
        spans.append((len(before.encode()), len(text[:last].encode())))
    return spans


def _mean_logprobs(
    logprobs: ArrayLike, sentences: NDArray[np.int64], count: int, sizes: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Mean log-probability of each sentence, over its tokens or over `sizes`, [count]; NaN where it has no token."""
    places = sentences + 1  # -1, of markup, comes first, and is left out
    sums = np.bincount(places, weights=np.asarray(logprobs), minlength=count + 1)[1:]
    numbers = np.bincount(places, minlength=count + 1)[1:]
    with np.errstate(invalid="ignore"):
        return np.where(numbers > 0, sums / np.maximum(numbers if sizes is None else sizes, 1), np.nan)
