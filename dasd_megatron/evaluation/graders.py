"""Whether a response's final answer is right."""

from __future__ import annotations

import re

from dasd_megatron.tokenization.response_format import CLOSE

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_BOXED = "\\boxed{"


def final_answer(text: str) -> str:
    """What follows the reasoning in a canonical response, the content of the last `\\boxed{}` if there is one."""
    _, closed, answer = text.rpartition(CLOSE)
    if not closed:
        return ""
    boxed = _last_boxed(answer)
    return (answer if boxed is None else boxed).strip()


def grade(answer: str, reference: str, grader: str) -> bool:
    """Whether `answer` equals `reference`: as text without white space (`exact`), or as numbers (`number`).

    `number` compares the one number in the answer with a reference that is a number; an answer that names several, such as
    7/4 or "2 or 3", names none. Where the reference is no number it compares text.
    """
    text, expected = "".join(answer.split()), "".join(reference.split())
    if grader == "exact" or text == expected or not _NUMBER.fullmatch(expected):
        return text == expected
    numbers = _NUMBER.findall(answer)
    return len(numbers) == 1 and _value(numbers[0]) == _value(expected)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _last_boxed(answer: str) -> str | None:
    """Content of the last `\\boxed{}`, whose braces may be nested."""
    start = answer.rfind(_BOXED)
    if start < 0:
        return None
    start += len(_BOXED)
    depth = 1
    for place in range(start, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[place], 0)
        if depth == 0:
            return answer[start:place]
    return None
