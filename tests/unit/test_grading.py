"""Final answers, and graders of the registry."""

from __future__ import annotations

import pytest

from dasd_megatron.grading.final_answer import final_answer
from dasd_megatron.grading.registry import GRADERS


@pytest.mark.parametrize(
    ("answer", "reference", "grader", "right"),
    [
        ("6", "6", "exact", True),
        ("6.", "6", "exact", False),
        ("The answer is 1,024.", "1024", "number", True),
        ("x = -3.50", "-3.5", "number", True),
        ("from 12 to 7", "12", "number", False),
        ("from 12 to 7", "7", "number", False),
        ("7/4", "3/4", "number", False),
        ("3 / 4", "3/4", "number", True),
        ("x^2", "y^2", "number", False),
        ("10^{3}", "3", "number", False),
        ("5-3", "-3", "number", False),
        (".5", "5", "number", False),
        ("1e3", "1000", "number", True),
        ("none", "7", "number", False),
        ("B", "B", "number", True),
    ],
)
def test_grade(answer: str, reference: str, grader: str, right: bool) -> None:
    assert GRADERS.get(grader)(answer, reference) is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think> 42 ", "42"),
        ("<think>1", ""),
        ("<think>a</think>So \\boxed{1}, no: \\boxed{2}.", "2"),
        ("<think>a</think>\\boxed{\\frac{3}{2}}", "\\frac{3}{2}"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer
