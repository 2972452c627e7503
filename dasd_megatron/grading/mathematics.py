"""The grader `math`: the same value, by math-verify.

Whole numbers are compared here, exactly; so are texts. All else goes to a process of its own, which ends where a comparison takes
too long: sympy can't be stopped otherwise.
"""

from __future__ import annotations

import re

from dasd_megatron.grading.final_answer import LONGEST, last_boxed
from dasd_megatron.grading.math_process import MathProcess
from dasd_megatron.grading.notation import number, plain_text
from dasd_megatron.grading.verdict import FAILED, NOT_EXTRACTED, TIMED_OUT, Verdict, judged
from dasd_megatron.utils.errors import UserError

_WHOLE = re.compile(r"([-+]?)0*(\d+)")
_UNIT = re.compile(r"(.*\d)\s*(?:\\[,;: ]|~)?\s*\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\d]*\}")
_SET, _PAIR = re.compile(r"\\\{.*\\\}", re.DOTALL), re.compile(r"\(.*,.*\)", re.DOTALL)
_SAID = re.compile(r"(?:final\s+)?answer\s*(?:is|:|=)\s*:?\s*(.+?)(?:\.\s|\.?\s*$|\n)", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$(.+?)\$|\\\((.+?)\\\)", re.DOTALL)


def grade_math(answer: str, reference: str) -> Verdict:
    """Whether the answer's value is that of the reference, in whatever form."""
    found = extract_math(answer)
    if not found:
        return Verdict(False, None, NOT_EXTRACTED)
    ours, theirs = (plain_text(_without_unit(text)) for text in (found, reference))
    if _key(ours) == _key(theirs):
        return judged(True, found)
    one, other = number(ours), number(theirs)
    if one is not None and other is not None and (whole := _same_whole(one, other)) is not None:
        return judged(whole, found)
    if {bool(_SET.fullmatch(text)) for text in (ours, theirs)} == {True, False} and any(
        map(_PAIR.fullmatch, (ours, theirs))
    ):
        return judged(False, found)  # a pair or an interval is no set, which math-verify takes it for
    try:
        equal = MathProcess.shared().equal(other or theirs, one or ours)
    except TimeoutError:
        return Verdict(False, found, TIMED_OUT)
    except UserError as error:
        return Verdict(None, found, FAILED, str(error))
    return judged(equal, found)


def _same_whole(one: str, other: str) -> bool | None:
    """Whether two whole numbers of any length are equal; None where one isn't whole."""
    found = [_WHOLE.fullmatch(text) for text in (one, other)]
    if found[0] is None or found[1] is None:
        return None
    ours, theirs = ((match.group(1) == "-" and match.group(2) != "0", match.group(2)) for match in found if match)
    return ours == theirs


def _without_unit(text: str) -> str:
    """A number with its unit as text, without the unit."""
    found = _UNIT.fullmatch(text.strip().strip("$").strip())
    return text if found is None or number(plain_text(found.group(1))) is None else found.group(1)


def extract_math(answer: str) -> str | None:
    """The last box; else what is said to be the answer; else the last formula, the last number, or all of a short answer."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed.strip()
    answer = answer[-LONGEST:].replace("**", "")
    said = _SAID.findall(answer)
    if said:
        answer = said[-1].strip()
    formulas = [next(filter(None, groups)) for groups in _ENVIRONMENT.findall(answer)]
    if formulas:  # what follows what is said explains it
        return str(formulas[0 if said else -1]).strip()
    if said or len(answer.split()) <= 4:
        return answer or None
    numbers = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?", answer)
    return str(numbers[-1]) if numbers else None


def _key(text: str) -> str:
    """For a comparison of texts: neither white space, nor case of words, nor brackets around a single letter count."""
    letter = re.fullmatch(r"[\(\[]\s*([A-Za-z])\s*[\)\]]", text)
    text = letter.group(1) if letter else text
    return (
        "".join(text.split()).casefold()
        if re.search(r"[A-Za-z]{2}", text) and "\\" not in text
        else "".join(text.split())
    )
