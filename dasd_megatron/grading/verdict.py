"""What a grader says of a response."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Of a response.

    Attributes:
        correct: None where the grader itself has failed, and nothing is known.
        extracted: what was taken for the answer; None for none.
        reason: in a word, for counting: `right`, `wrong`, `no_answer` (the reasoning never ended), `not_extracted`, `timed_out`,
            `failed` (the grader), and the graders' own.
        detail: more, for people.
    """

    correct: bool | None
    extracted: str | None
    reason: str
    detail: str | None = None


RIGHT, WRONG = "right", "wrong"
NO_ANSWER, NOT_EXTRACTED, TIMED_OUT, FAILED = "no_answer", "not_extracted", "timed_out", "failed"


def judged(correct: bool, extracted: str) -> Verdict:
    """The verdict of a grader that looks at nothing but the answer."""
    return Verdict(correct, extracted, RIGHT if correct else WRONG)
