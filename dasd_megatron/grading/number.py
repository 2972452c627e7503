"""The grader `number`: equal numbers."""

from __future__ import annotations

import re

from dasd_megatron.grading.exact import grade_exact

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def grade_number(answer: str, reference: str) -> bool:
    """Whether the one number in the answer equals the reference; where the reference is no number, whether the texts are equal.

    An answer that names several numbers, such as 7/4 or "2 or 3", names none.
    """
    expected = "".join(reference.split())
    if grade_exact(answer, reference) or not _NUMBER.fullmatch(expected):
        return grade_exact(answer, reference)
    numbers = _NUMBER.findall(answer)
    return len(numbers) == 1 and _value(numbers[0]) == _value(expected)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
