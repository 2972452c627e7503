"""What is taken for an answer, and the graders that look at nothing else."""

from __future__ import annotations

import time

import pytest

from dasd_megatron.grading.final_answer import answer_text, final_answer
from dasd_megatron.grading.registry import GRADERS, check_reference, grade, is_right
from dasd_megatron.grading.verdict import NO_ANSWER, NOT_EXTRACTED, Verdict
from dasd_megatron.utils.errors import UserError


@pytest.mark.parametrize(
    ("answer", "reference", "grader", "right"),
    [
        ("6", "6", "exact", True),
        ("6.", "6", "exact", False),
        ("The answer is 1,024.", "1024", "number", True),
        ("1{,}024", "1024", "number", True),
        (r"1\,024", "1024", "number", True),
        ("x = -3.50", "-3.5", "number", True),
        ("9007199254740993", "9007199254740992", "number", False),
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
        ("B", "B", "choice", True),
        ("(B)", "B", "choice", True),
        ("**B**", "B", "choice", True),
        (r"\boxed{\text{B}}", "B", "choice", True),
        (r"\boxed{\text{(B) four}}", "B", "choice", True),
        ("Since A is too small, the answer is B.", "B", "choice", True),
        ("**Answer: (C)** because a D would float", "C", "choice", True),
        ("The correct option is **D**.", "D", "choice", True),
        ("I first chose the answer A. The correct answer is C", "C", "choice", True),
        ("Four carbons.\n\nB", "B", "choice", True),
        ("A) Wrong, because it melts.\nB) Right.\n\nAnswer: B", "B", "choice", True),
        ("A. is ruled out by symmetry.\nThe correct answer is B.", "B", "choice", True),
        ("a) first the mass\nb) then the charge\n\nAnswer: C", "C", "choice", True),
        ("A-level physics is enough.\n\nAnswer: C", "C", "choice", True),
        ("I. Setup\nII. Solution\n\nAnswer: C", "C", "choice", True),
        ("I - first consider the field", "I", "choice", False),
        ("(A) and (B) are wrong, so Answer: C", "C", "choice", True),
        ("The answer is B, since option A is wrong.", "B", "choice", True),
        ("Answer: C\n\nOption A ignores friction.", "C", "choice", True),
        ("Answer: b", "B", "choice", True),
        ("B. Four electrons", "B", "choice", True),
        ("A or B", "A", "choice", False),
        (r"\boxed{\sqrt{2}}", "2", "number", False),
        (r"\boxed{x^2}", "2", "number", False),
        (r"\boxed{2\pi}", "2", "number", False),
        (r"\boxed{10!}", "10", "number", False),
        (r"\boxed{12,5}", "125", "number", False),
        (r"\boxed{1,250}", "1250", "number", True),
        ("x = -3.50 m", "-3.5", "number", True),
        ("10 km/h", "10", "number", True),
        ("**Answer:** 42", "42", "number", True),
        (r"Thus \( x = 5 \).", "5", "number", True),
        ("x/2", "2", "number", False),
        (r"\boxed{1e99999999999}", "7", "number", False),
        (r"\boxed{" + "7" * 5000 + "}", "7", "number", False),
        (r"\boxed{" + "7" * 5000 + "}", "7", "math", False),
        (r"\boxed{00" + "7" * 5000 + "}", "7" * 5000, "math", True),
        ("Answer: C", "D", "choice", False),
        ("An acid", "A", "choice", False),
        ("The answer is a base", "A", "choice", False),
    ],
)
def test_grade(answer: str, reference: str, grader: str, right: bool) -> None:
    assert GRADERS.get(grader)(answer, reference).correct is right


def test_every_letter_can_be_right() -> None:
    """A grader for which all are D: evalchemy#155."""
    for letter in "ABCD":
        verdicts = [grade(f"<think>D? A?</think>Answer: {other}", letter, "choice") for other in "ABCD"]
        assert [verdict.correct for verdict in verdicts] == [other == letter for other in "ABCD"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think>\n\n42 ", "42"),
        ("1</think>\n    return 42", "    return 42"),  # the prompt has opened the reasoning
        ("<think>1", None),
        ("<think>\\boxed{1}", None),
        ("It is 42.", "It is 42."),
    ],
)
def test_answer_text(text: str, answer: str | None) -> None:
    assert answer_text(text) == answer


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("42", "42"),
        ("So \\boxed{1}, no: \\boxed{2}.", "2"),
        ("\\boxed{\\frac{3}{2}}", "\\frac{3}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("$\\boxed 7$", "7"),
        ("\\boxed{1", "\\boxed{1"),
        ("\\boxed{204}\nThat is all. See line 3.", "204"),  # not the last line: inspect_evals#2025
    ],
)
def test_final_answer(answer: str, final: str) -> None:
    assert final_answer(answer) == final


def test_a_box_in_the_reasoning_is_no_answer() -> None:
    """prime-envs#437."""
    assert grade("<think>Maybe \\boxed{204}?</think>I can't tell.", "204", "math").correct is False
    assert grade("<think>Maybe \\boxed{204}", "204", "math") == Verdict(False, None, NO_ANSWER)
    assert grade("Maybe. No, \\boxed{204}", "204", "math").correct is True


def test_what_was_extracted_is_told() -> None:
    assert grade("<think>a</think>So \\boxed{12}", "13", "number") == Verdict(False, "12", "wrong")
    assert grade("No idea what this could be about.", "B", "choice") == Verdict(False, None, NOT_EXTRACTED)


def test_a_failed_grader_is_no_wrong_answer() -> None:
    """A broken grader scores 0: mlcommons/endpoints#432."""

    @GRADERS.register("broken")
    def broken(answer: str, reference: str) -> Verdict:
        return Verdict(None, answer, "failed", "the disk is gone")

    with pytest.raises(UserError, match=r"grader broken: can't tell whether a response is right: the disk is gone"):
        is_right("42", "42", "broken")


@pytest.mark.parametrize("text", ["\\[ a ", "\\( a ", "answer is ", "\\boxed{", "$ ", "Option A, "])
@pytest.mark.parametrize("grader", ["math", "number", "choice", "exact"])
def test_loops_take_no_longer_than_their_length(text: str, grader: str) -> None:
    """A looping answer of 100,000 tokens; patterns that look ahead took minutes."""
    start = time.process_time()
    assert grade(text * 40_000, "5" if grader != "choice" else "B", grader).correct is False
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("grader", "reference", "message"),
    [
        ("choice", "3", "a letter from A to J, not '3'"),
        ("choice", "The third", "a letter from A to J"),
        ("exact", "  ", "the reference answer is empty"),
        ("code", "[]", "a list `tests` that isn't empty"),
    ],
)
def test_references_that_nothing_could_match(grader: str, reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_reference(reference, grader)
