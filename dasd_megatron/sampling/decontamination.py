"""Which problems to learn from are, or contain, held-out ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Words in a row that two problems must share; a shorter held-out problem must be contained whole, if it has this many at least.
NGRAM, SHORTEST = 13, 8
# Of held-out problems with the same words in a row: more, and these are the benchmark's instructions, not a problem.
MAX_PROBLEMS = 2

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_PUNCTUATION = re.compile(r"""[$"'`’“”]|[.,;:!?。、]+(?!\d)|(?<!\d)[.,;:!?。、]+""")


@dataclass(frozen=True)
class Match:
    """What a problem shares with a held-out one: `text`, all of it if `whole`."""

    uuid: str
    text: str
    whole: bool


class HeldOutProblems:
    """Held-out problems, to be compared with others whatever their case, width of characters, white space or punctuation."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        """`problems`: uuid and text of each."""
        self._whole: dict[str, str] = {}
        found: dict[tuple[str, ...], set[str]] = {}
        for uuid, text in problems:
            if self._whole.setdefault(_symbols(text), uuid) != uuid:  # the same problem again
                continue
            words = _words(text)
            if len(words) >= SHORTEST:
                for ngram in _ngrams(words, min(NGRAM, len(words))):
                    found.setdefault(ngram, set()).add(uuid)
        self._ngrams = {ngram: min(uuids) for ngram, uuids in found.items() if len(uuids) <= MAX_PROBLEMS}
        self._sizes = sorted({len(ngram) for ngram in self._ngrams})

    def match(self, text: str) -> Match | None:
        """What `text` shares with a held-out problem; None for nothing."""
        whole = _symbols(text)
        if whole in self._whole:
            return Match(self._whole[whole], text, whole=True)
        words = _words(text)
        for size in self._sizes:
            for ngram in _ngrams(words, size):
                if ngram in self._ngrams:
                    return Match(self._ngrams[ngram], " ".join(ngram), whole=False)
        return None


def normalized(text: str) -> str:
    """The text without what writing it differently changes: case, width of characters, white space. Symbols stay: `2+2`."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _symbols(text: str) -> str:
    """The normalized text without dollar signs, quotes, and punctuation that isn't part of a number."""
    return _PUNCTUATION.sub("", normalized(text))


def _words(text: str) -> list[str]:
    """Of scripts without spaces between words, characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _ngrams(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))
