"""The grader `exact`: the same text."""

from __future__ import annotations


def grade_exact(answer: str, reference: str) -> bool:
    """Whether both are the same text, white space apart."""
    return "".join(answer.split()) == "".join(reference.split())
