"""The filter `wrong_answer`: where a recipe asks for right answers only."""

from __future__ import annotations

from dasd_megatron.curation.filters.filter import Filter, StudentView
from dasd_megatron.grading.registry import is_right


class WrongAnswerFilter(Filter):
    """The final answer differs from the problem's reference answer. Problems without one are let through."""

    def reason(self, response: StudentView) -> str | None:
        """`wrong_answer`."""
        reference, grader = response.row["answer"], self.setup.grader
        if grader is None or reference is None or is_right(response.text, reference, grader):
            return None
        return "wrong_answer"
