"""The documentation's pages, taken apart: their Markdown, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]


def name_of(path: Path) -> str:
    """A page's path in the repository."""
    return str(path.relative_to(ROOT))


@cache
def tokens(path: Path) -> list[Token]:
    """All tokens of a page, those inside a line after the line's."""
    found: list[Token] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        found += [token, *(token.children or [])]
    return found


@dataclass(frozen=True)
class Command:
    """A command line of a page."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{name_of(self.page)}: {' '.join(self.words)}"


def command_lines(path: Path) -> Iterator[Command]:
    """Of the page's blocks of shell: what they run of this repository, without comments and variables before it."""
    for token in tokens(path):
        if token.type == "fence" and token.info.strip() in ("sh", "bash", "shell"):
            for line in token.content.replace("\\\n", " ").splitlines():
                try:
                    words = shlex.split(line, comments=True)
                except ValueError:  # a part of a longer construct
                    continue
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    del words[0]
                if "|" in words or ">" in words:
                    words = words[: min(words.index(mark) for mark in ("|", ">") if mark in words)]
                if words[:1] == [".venv/bin/dasd"]:
                    words[0] = "dasd"
                if words[:1] in (["dasd"], ["make"], ["python"]):
                    yield Command(path, tuple(words))
