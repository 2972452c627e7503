"""What a response gives as its answer."""

from __future__ import annotations

from dasd_megatron.tokenization.response_format import CLOSE

_BOXED = "\\boxed{"


def final_answer(text: str) -> str:
    """What follows the reasoning in a canonical response, the content of the last `\\boxed{}` if there is one."""
    _, closed, answer = text.rpartition(CLOSE)
    if not closed:
        return ""
    boxed = _last_boxed(answer)
    return (answer if boxed is None else boxed).strip()


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
