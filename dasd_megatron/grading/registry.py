"""The graders. Adding one: a module with a function, and a line here (or a plugin that registers it)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dasd_megatron.grading.choice import choice_of
from dasd_megatron.grading.final_answer import answer_text
from dasd_megatron.grading.program_tests import program_tests
from dasd_megatron.grading.verdict import NO_ANSWER, Verdict
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry

# Each is called with what follows a response's reasoning, and the reference.
GRADERS: Registry[Callable[[str, str], Verdict]] = Registry(
    "grader",
    {
        "exact": "dasd_megatron.grading.exact:grade_exact",
        "number": "dasd_megatron.grading.number:grade_number",
        "math": "dasd_megatron.grading.mathematics:grade_math",
        "choice": "dasd_megatron.grading.choice:grade_choice",
        "code": "dasd_megatron.grading.programs:grade_code",
    },
)


def grade(text: str, reference: str, grader: str) -> Verdict:
    """What the grader says of a response in canonical form.

    Raises UserError where there is no such grader, or where it can't read the reference.
    """
    answer = answer_text(text)
    if answer is None:
        return Verdict(False, None, NO_ANSWER)
    return GRADERS.get(grader, "grader")(answer, reference)


def grader_of(grader: str | Mapping[str, str], domain: str | None) -> str | None:
    """The grader of answers of a domain; None where they aren't graded."""
    return grader if isinstance(grader, str) else grader.get(domain or "none")


def is_right(text: str, reference: str, grader: str) -> bool:
    """Whether a response in canonical form is right. Raises UserError as `grade` does, and where the grader itself has failed."""
    verdict = grade(text, reference, grader)
    if verdict.correct is None:
        raise UserError(f"grader {grader}: can't tell whether a response is right: {verdict.detail}")
    return verdict.correct


def check_reference(reference: str, grader: str) -> None:
    """Raises UserError for a reference that no answer could match."""
    if not reference.strip():
        raise UserError("the reference answer is empty")
    if grader == "code":
        program_tests(reference)
    if grader == "choice" and choice_of(reference) is None:
        raise UserError(f"the reference of the grader choice is a letter from A to J, not {reference[:40]!r}")
