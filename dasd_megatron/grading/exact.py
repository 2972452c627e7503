"""The grader `exact`: the same text."""

from __future__ import annotations

from dasd_megatron.grading.final_answer import final_answer
from dasd_megatron.grading.verdict import Verdict, judged


def grade_exact(answer: str, reference: str) -> Verdict:
    """Whether both are the same text, white space apart."""
    found = final_answer(answer)
    return judged(same_text(found, reference), found)


def same_text(one: str, other: str) -> bool:
    """Whether both are the same, white space apart."""
    return "".join(one.split()) == "".join(other.split())
