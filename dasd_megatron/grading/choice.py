"""The grader `choice`: the letter of one of several choices."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dasd_megatron.grading.final_answer import LONGEST, last_boxed
from dasd_megatron.grading.notation import plain_text
from dasd_megatron.grading.verdict import NOT_EXTRACTED, Verdict, judged

# I is a pronoun, too.
_LETTER = r"(?:\(([A-J])\)|\[([A-J])\]|\b([A-HJ]|I(?!\s+[a-z'’]))\b)(?!['’])"
# A line that is a choice and, maybe, what it says: `B`, `(B)`, `B. Four`, `Option B: four`.
_CHOICE = re.compile(
    r"(?i:(?:option|choice|answer)\s+)?"
    r"(?:[\(\[]\s*([A-Ja-j])\s*[\)\]](?:\s+(?!and\b|or\b).*|[.:].*)?|([A-HJ])(?:[.:)]\s.*| [-–] .*)?|(I)[.:)]?|([a-j]))"
)
_VERB = r"\W{0,6}(?:is|are|would be|must be|should be|:|=)\W{0,6}(?:(?:option|choice|answer)\W{1,3})?"
# How an answer is said, the plainest way first. Letters alone are capitals, but for one that ends a line.
_SAID = (
    re.compile(rf"(?i:\banswers?\b{_VERB})(?:{_LETTER}|\(?([a-j])\)?[.*\s]*$)", re.MULTILINE),
    re.compile(rf"(?i:\b(?:choice|option)s?\b{_VERB}){_LETTER}"),
    re.compile(rf"(?i:\b(?:answer|choice|option)\b)\W{{1,3}}{_LETTER}"),
)


def grade_choice(answer: str, reference: str) -> Verdict:
    """Whether the last choice that the answer names is the reference, a letter."""
    letter = next(_letters(answer), None)
    if letter is None:
        return Verdict(False, None, NOT_EXTRACTED)
    return judged(letter == choice_of(reference), letter)


def choice_of(reference: str) -> str | None:
    """The reference's letter; None for a text that is no choice."""
    letter = plain_text(reference).strip("()").upper()
    return letter if re.fullmatch("[A-J]", letter) else None


def _letters(answer: str) -> Iterator[str]:
    """The letter that each way to read the answer finds, best way first."""
    boxed = last_boxed(answer)
    text = (
        re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", answer[-LONGEST:])
        .replace("**", "")
        .replace("$", "")
    )
    lines = [plain_text(line) for line in text.splitlines() if line.strip()]
    if boxed is not None:
        yield from _named(_CHOICE.fullmatch(plain_text(boxed)))
    if len(lines) == 1:
        yield from _named(_CHOICE.fullmatch(lines[0]))
    for pattern in _SAID:
        *_, last = [None, *pattern.finditer(text)]
        yield from _named(last)
    choices = [found for line in lines if (found := _CHOICE.fullmatch(line))]
    if choices:  # the last line that is one; lines before it may have been ruled out
        yield from _named(choices[-1])


def _named(found: re.Match[str] | None) -> Iterator[str]:
    if found is not None:
        yield from (letter.upper() for letter in found.groups() if letter)
