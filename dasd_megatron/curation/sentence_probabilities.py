"""Probabilities of teacher and student, sentence by sentence (paper, section 2.3; arXiv 2512.20908)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.curation.sentences import SentenceSplitter, sentence_of_tokens

KINDS = ("Teacher", "Student", "Shared")


@dataclass(frozen=True)
class SentenceProbabilities:
    """One response, sentence by sentence. Sentences in which either model starts no token are left out.

    Attributes:
        teacher: [sentences], geometric mean of the teacher's token probabilities.
        student: [sentences], the same of the student's own tokens.
    """

    teacher: NDArray[np.float64]
    student: NDArray[np.float64]

    @property
    def difference(self) -> NDArray[np.float64]:
        """p_T - p_S of each sentence, [sentences]."""
        return self.teacher - self.student

    def kinds(self, threshold: float) -> list[str]:
        """Teacher where p_T - p_S exceeds the threshold, Student where p_S - p_T does, else Shared.

        Before training, Shared holds the Boosted sentences too: only the distilled student tells them apart.
        """
        return [KINDS[0] if d > threshold else KINDS[1] if d < -threshold else KINDS[2] for d in self.difference]


def sentence_probabilities(row: Mapping[str, Any], splitter: SentenceSplitter) -> SentenceProbabilities:
    """Teacher's and student's probabilities of the sentences of one scored response (schema FILTERED + student_logprobs)."""
    starts = splitter.starts(row["text"])
    teacher = _mean_logprobs(row["logprobs"], sentence_of_tokens(row["token_starts"], starts), len(starts))
    student = _mean_logprobs(
        row["student_logprobs"], sentence_of_tokens(row["student_token_starts"], starts), len(starts)
    )
    both = ~(np.isnan(teacher) | np.isnan(student))
    # A probability of exactly 0 (underflow) would make the log-ratio infinite.
    tiny = np.finfo(np.float64).tiny
    return SentenceProbabilities(np.maximum(np.exp(teacher[both]), tiny), np.maximum(np.exp(student[both]), tiny))


def _mean_logprobs(logprobs: ArrayLike, sentences: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean log-probability of the tokens of each sentence, [count]; NaN where a sentence has no token."""
    kept = sentences >= 0
    sums = np.bincount(sentences[kept], weights=np.asarray(logprobs, dtype=np.float64)[kept], minlength=count)
    numbers = np.bincount(sentences[kept], minlength=count)
    with np.errstate(invalid="ignore"):
        return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
