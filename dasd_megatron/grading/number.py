"""The grader `number`: equal numbers, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

from dasd_megatron.grading.exact import same_text
from dasd_megatron.grading.final_answer import final_answer
from dasd_megatron.grading.notation import plain_text
from dasd_megatron.grading.verdict import Verdict, judged

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def grade_number(answer: str, reference: str) -> Verdict:
    """Whether the one number in the answer equals the reference; where the reference is no number, whether the texts are equal.

    An answer that names several numbers, such as 7/4 or "2 or 3", names none.
    """
    found, expected = plain_text(final_answer(answer)), "".join(reference.split())
    if same_text(found, reference) or not _NUMBER.fullmatch(expected):
        return judged(same_text(found, reference), found)
    numbers = _NUMBER.findall(re.sub(r"(?<=\d) (?=\d{3}\b)", "", found))
    return judged(len(numbers) == 1 and _value(numbers[0]) == _value(expected), found)


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
