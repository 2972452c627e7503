"""Whether a response's final answer is right."""

from __future__ import annotations

import re

from dasd_megatron.tokenization.response_format import CLOSE

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_answer(text: str) -> str:
    """What follows the reasoning in a canonical response, the content of the last `\\boxed{}` if there is one."""
    _, closed, answer = text.rpartition(CLOSE)
    if not closed:
        return ""
    boxed = _BOXED.findall(answer)
    return (boxed[-1] if boxed else answer).strip()


def grade(answer: str, reference: str, grader: str) -> bool:
    """Whether `answer` equals `reference`: as text (`exact`), or as the last number in it (`number`)."""
    if grader == "exact":
        return answer == reference.strip()
    numbers, expected = _NUMBER.findall(answer), _NUMBER.findall(reference)
    if not expected:
        return answer == reference.strip()
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(expected[-1].replace(",", ""))
