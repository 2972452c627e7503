"""Ways to write the same answer, made one."""

from __future__ import annotations

import re

_SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\(?:quad|qquad|thinspace)\b|~|\u2009|\u202f|\u00a0")
_SIZES = re.compile(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?")
_FONTS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}")
_DELIMITERS = re.compile(r"^(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])$", re.DOTALL)
_BOLD = re.compile(r"^(\*\*|__|\*|_|`)(.+)\1$", re.DOTALL)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b")
# 12,345.6 with any mark between groups of three digits.
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:([, _'’])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def plain_text(text: str) -> str:
    """An answer without markup of text, sizes and spaces; what it says is left as it is."""
    text, before = text.strip(), None
    while text != before:
        before = text
        text = text.rstrip(".。;,").strip() if not text.endswith("...") else text
        for pattern, group in ((_DELIMITERS, 1), (_BOLD, 2)):
            found = pattern.match(text)
            if found is not None and found.group(group).count("$") == 0:
                text = found.group(group).strip()
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})", "", text).replace("{,}", ",").replace("−", "-").replace("–", "-")
    text = _SPACES.sub(" ", _SIZES.sub("", text))
    while (unwrapped := _FONTS.sub(r" \1 ", text)) != text:
        text = unwrapped
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text).replace("\\$", "").replace("\\%", "%")
    text = _DEGREES.sub("", text)
    return " ".join(text.split()).rstrip(".").strip()


def number(text: str) -> str | None:
    """A plain text that is one number, as digits without marks between groups; None for any other."""
    text = text.strip()
    grouped = _GROUPED.fullmatch(text)
    if grouped is not None:
        text = text.replace(grouped.group(1), "")
    text = re.sub(r"^([-+])\s+", r"\1", text)
    return text if _NUMBER.fullmatch(text) else None
