"""The graders. Adding one: a module with a function, and a line here (or a plugin that registers it)."""

from __future__ import annotations

from collections.abc import Callable

from dasd_megatron.grading.final_answer import final_answer
from dasd_megatron.utils.registry import Registry

# Each is called with a response's final answer and the reference answer, and says whether it is right.
GRADERS: Registry[Callable[[str, str], bool]] = Registry(
    "grader",
    {
        "exact": "dasd_megatron.grading.exact:grade_exact",
        "number": "dasd_megatron.grading.number:grade_number",
    },
)


def grade(text: str, reference: str, grader: str) -> bool:
    """Whether the final answer of a response in canonical form is right."""
    return GRADERS.get(grader, "evaluation.grader")(final_answer(text), reference)
