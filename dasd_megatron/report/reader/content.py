"""What the reader shows: views of items, each a prompt with its responses, in pieces that are shaded."""

from __future__ import annotations

import base64
import gzip
import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Characters of a text that are shown, from its start and from its end; what is between is counted.
MAX_CHARACTERS = 16_000


@dataclass(frozen=True)
class Piece:
    """Consecutive characters of a response.

    Attributes:
        teacher: the teacher's probability of this sentence, the geometric mean over its tokens; None where there is none.
        student: the student's.
        writer: `teacher` or `student`, in a response that both wrote; `rejected` for what was cut away.
        omitted: how many characters are left out here; `text` is empty then.
    """

    text: str
    teacher: float | None = None
    student: float | None = None
    writer: str | None = None
    omitted: int | None = None


@dataclass(frozen=True)
class ResponseCard:
    """One response.

    Attributes:
        title: who wrote it, and how.
        marks: what became of it; items are filtered by them.
        facts: small print.
    """

    title: str
    marks: Sequence[str]
    facts: Sequence[str]
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Item:
    """A prompt with its responses.

    Attributes:
        reference: the right answer, where there is one.
    """

    id: str
    prompt: str
    cards: Sequence[ResponseCard]
    reference: str | None = None


@dataclass(frozen=True)
class View:
    """One of the reader's tables.

    Attributes:
        about: what is to be seen in it.
        total: how many items the run has, of which `items` are a sample.
    """

    title: str
    about: str
    total: int
    items: Sequence[Item] = field(default_factory=list)


def sampled(ids: Iterable[str], count: int) -> set[str]:
    """`count` of the different ids, by their hashes: at random, and the same in every run."""
    return set(heapq.nsmallest(count, set(ids), key=lambda name: hashlib.sha256(name.encode()).digest()))


def shortened(pieces: Sequence[Piece], limit: int = MAX_CHARACTERS) -> list[Piece]:
    """The pieces with no more than `limit` characters of text; from the middle, what is too much is left out."""
    excess = sum(len(piece.text) for piece in pieces) - limit
    if excess <= 0:
        return list(pieces)
    first, kept, reached = limit // 2, list[Piece](), 0
    for piece in pieces:
        start, end = reached, reached + len(piece.text)
        reached = end
        if start < first:
            kept.append(_part(piece, 0, first - start))
        if start <= first < end:
            kept.append(Piece("", omitted=excess))
        if end > first + excess:
            kept.append(_part(piece, max(first + excess - start, 0), len(piece.text)))
    return kept


def _part(piece: Piece, start: int, end: int) -> Piece:
    return Piece(piece.text[start:end], piece.teacher, piece.student, piece.writer)


def embedded(views: Sequence[View]) -> str:
    """The views as base64 of compressed JSON, without what is None: nothing in it can end the page's script."""
    content = json.dumps([_dense(asdict(view)) for view in views], ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dense(own) for key, own in value.items() if own is not None}
    if isinstance(value, list | tuple):
        return [_dense(own) for own in value]
    return round(value, 3) if isinstance(value, float) else value
