"""The grader `number`: equal numbers, exactly."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from dasd_megatron.grading.exact import same_text
from dasd_megatron.grading.final_answer import final_answer
from dasd_megatron.grading.notation import plain_text
from dasd_megatron.grading.verdict import Verdict, judged

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?")
# What touches a number and makes another value of it; words, units and marks don't.
_BEFORE = re.compile(r"(?:[\^/_<>+~≠≈±×÷√|·]|\\[A-Za-z]+\s*\{?)\s*$")
_AFTER = re.compile(r"\s*(?:[\^!/_<>+±×÷√π²³·]|\\[A-Za-z])")


def grade_number(answer: str, reference: str) -> Verdict:
    """Whether the one number in the answer equals the reference; where the reference is no number, whether the texts are equal.

    An answer that names several numbers, such as 7/4 or "2 or 3", names none, and neither does an expression, such as 10! or 2^3.
    """
    found, expected = plain_text(final_answer(answer)), "".join(reference.split())
    if same_text(found, reference) or not _NUMBER.fullmatch(expected):
        return judged(same_text(found, reference), found)
    text = re.sub(r"(?<=\d) (?=\d{3}\b)", "", found)
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or _BEFORE.search(text[: numbers[0].start()]) or _AFTER.match(text, numbers[0].end()):
        return judged(False, found)
    value = _value(numbers[0].group())
    return judged(value is not None and value == _value(expected), found)


def _value(text: str) -> Decimal | None:
    """Exact, and never expanded: a loop may write 1e99999999. None where it is beyond any number."""
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
