"""What a response gives as its answer."""

from __future__ import annotations

import re

from dasd_megatron.tokenization.response_format import CLOSE, OPEN

# Characters at the end of an answer in which one without a box is looked for: patterns take quadratic time on loops.
LONGEST = 10_000
_BOXES = 16
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def answer_text(text: str) -> str | None:
    """What follows the reasoning in a canonical response; all of one that doesn't reason; None where the reasoning never ends."""
    _, closed, answer = text.rpartition(CLOSE)
    if closed:
        return answer.rstrip().lstrip("\r\n")  # an indent may belong to code
    return None if OPEN in text else text.rstrip().lstrip("\r\n")


def final_answer(answer: str) -> str:
    """The content of the last `\\boxed{}`, or all of the answer where there is none."""
    boxed = last_boxed(answer)
    return (answer if boxed is None else boxed).strip()


def last_boxed(answer: str) -> str | None:
    """Content of the last `\\boxed{}` (or `\\boxed 7`) that ends, whose braces may be nested; None where there is none."""
    starts = [match.end() for match in _BOX.finditer(answer)]
    # Of many that never end, a loop's, the last are enough.
    contents = (_box_content(answer[start:]) for start in reversed(starts[-_BOXES:]))
    return next((content for content in contents if content is not None), None)


def _box_content(rest: str) -> str | None:
    """What the box holds that begins here; None where it doesn't end."""
    if not rest.startswith("{"):
        word = re.match(r"[^\s$]+", rest)
        return None if word is None else word.group()
    depth = 0
    for place, character in enumerate(rest):
        escaped = place > 0 and rest[place - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place]
    return None
