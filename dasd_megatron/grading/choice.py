"""The grader `choice`: the letter of one of several choices."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dasd_megatron.grading.final_answer import last_boxed
from dasd_megatron.grading.notation import plain_text
from dasd_megatron.grading.verdict import NOT_EXTRACTED, Verdict, judged

_LETTER = r"[\(\[]?\s*([A-J])\s*[\)\]]?"
# A text that is a choice and, maybe, what it says: `B`, `(B)`, `B. Four`.
_CHOICE = re.compile(rf"(?:(?:option|choice|answer)\s*)?{_LETTER}(?:\s*[.:)\-–].*)?", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(
    r"(?:answer|choice|option)s?\b\W{0,6}(?:is|are|would be|must be|should be|:|=)?\W{0,6}(?:(?:option|choice|answer)\W{1,3})?"
    r"(?-i:\(?\b([A-J])\b\)?)(?!['’])",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:\*\*|^|\n)\s*\(?([A-J])\)?[.:]?\s*(?:\*\*|$|\n)")


def grade_choice(answer: str, reference: str) -> Verdict:
    """Whether the last choice that the answer names is the reference, a letter."""
    letter = next(_letters(answer), None)
    if letter is None:
        return Verdict(False, None, NOT_EXTRACTED)
    return judged(letter == plain_text(reference).strip("()").upper(), letter)


def _letters(answer: str) -> Iterator[str]:
    """The letter that each way to read the answer finds, best way first."""
    boxed = last_boxed(answer)
    for text in (answer if boxed is None else boxed, answer):
        found = _CHOICE.fullmatch(plain_text(text))
        if found is not None:
            yield found.group(1).upper()
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", answer).replace("**", "").replace("$", "")
    for pattern, source in ((_SAID, text), (_ALONE, answer)):
        letters = pattern.findall(source)
        if letters:
            yield letters[-1].upper()
