"""The filter `wrong_answer`: where a recipe asks for right answers only."""

from __future__ import annotations

from dasd_megatron.curation.filters.filter import Filter, StudentView
from dasd_megatron.grading.registry import grader_of, is_right


class WrongAnswerFilter(Filter):
    """The final answer differs from the problem's reference answer. Problems without one, or of a domain that isn't graded, are
    let through."""

    def reason(self, response: StudentView) -> str | None:
        """`wrong_answer`."""
        row, graders = response.row, self.setup.grader
        grader = None if graders is None else grader_of(graders, row["domain"])
        if grader is None or row["answer"] is None or is_right(response.text, row["answer"], grader):
            return None
        return "wrong_answer"
