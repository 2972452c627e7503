"""Candidates with their scores, and what their sentences are like."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.scores import BUILTIN, NEED_BRIER, Candidate, scores_of
from dasd_megatron.curation.sentence_probabilities import KINDS, SentenceProbabilities, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter

_WHITE_SPACE = b" \t\n\r\v\f"
# Scores that every candidate has, whichever one the choice is made by.
ALWAYS = tuple(name for name in BUILTIN if name not in NEED_BRIER)
# Every candidate with its scores, chosen or not, in the order of the scored responses: what a study of the selection needs.
CANDIDATES = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("domain", pa.string()),
        ("text_hash", pa.int64()),  # tells equal responses
        *((name, pa.float32()) for name in ALWAYS),
        *((kind, pa.int32()) for kind in KINDS),  # how many sentences of each kind
    ]
)
# Some sentences of every shard, for the report's figure.
SENTENCES = pa.schema([("teacher", pa.float32()), ("student", pa.float32()), ("kind", pa.string())])
MAX_SENTENCES = 20_000
# How many sentences have p_T - p_S in each of BINS equal parts of [-1, 1], one row a shard.
DIFFERENCES = pa.schema([("counts", pa.list_(pa.int64()))])
BINS = 400
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# What candidates are scored by.
SEEN = [
    "uuid",
    "sample_index",
    "domain",
    "text",
    "logprobs",
    "token_starts",
    "student_logprobs",
    "student_token_starts",
    "student_ranks",
    "student_brier",
]
# Prompts whose candidates are written at a time.
BATCH = 64


class CandidateScorer:
    """Scores the responses of a shard, a prompt's candidates together.

    Args:
        sentences: of the shard, how many are kept for the figure.
    """

    def __init__(self, selection: SelectionConfig, splitter: SentenceSplitter, sentences: int) -> None:
        self._selection, self._splitter, self._left = selection, splitter, sentences
        self._names = list(dict.fromkeys([*ALWAYS, selection.score]))
        self._rows: list[dict[str, Any]] = []
        self._examples: list[dict[str, Any]] = []
        self._differences = np.zeros(BINS, np.int64)

    def tables(self, responses: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, pa.Table]]:
        """Tables `candidates`, `sentences` and, at the end, `differences`. Candidates of a prompt come one after another."""
        for number, (_, rows) in enumerate(groupby(responses, itemgetter("uuid")), 1):
            self._add(list(rows))
            if number % BATCH == 0:
                yield self._written()
        yield {**self._written(), "differences": pa.Table.from_pylist([{"counts": self._differences}], DIFFERENCES)}

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        threshold = self._selection.threshold
        candidates = [
            Candidate(
                sentence_probabilities(row, self._splitter, self._selection.mean),
                row["student_logprobs"],
                row["student_ranks"],
                row["student_brier"],
            )
            for row in rows
        ]
        scores = scores_of(candidates, self._names, threshold)
        for number, (row, candidate) in enumerate(zip(rows, candidates, strict=True)):
            kinds = candidate.sentences.kinds(threshold)
            counts = Counter(kinds)
            self._differences += np.histogram(candidate.sentences.difference, BINS, (-1, 1))[0]
            self._rows.append(
                {
                    "uuid": row["uuid"],
                    "sample_index": row["sample_index"],
                    "domain": row["domain"],
                    "text_hash": text_hash(row["text"]),
                    **{name: scores[name][number] for name in self._names},
                    **{kind: counts[kind] for kind in KINDS},
                }
            )
            if self._left > 0:
                found = _examples(candidate.sentences, kinds)[: self._left]
                self._left -= len(found)
                self._examples += found

    def _written(self) -> dict[str, pa.Table]:
        written = {
            "sentences": pa.Table.from_pylist(self._examples, SENTENCES),
            "candidates": pa.Table.from_pylist(self._rows, self._schema()),
        }
        self._rows, self._examples = [], []
        return written

    def _schema(self) -> pa.Schema:
        schema = CANDIDATES
        for name in self._names[len(ALWAYS) :]:
            schema = schema.append(pa.field(name, pa.float32()))
        return schema


def _examples(found: SentenceProbabilities, kinds: list[str]) -> list[dict[str, Any]]:
    triples = zip(found.teacher, found.student, kinds, strict=True)
    return [{"teacher": teacher, "student": student, "kind": kind} for teacher, student, kind in triples]


def text_hash(text: str) -> int:
    """64 bits of a text's SHA-256, whatever its case, width of characters and white space."""
    letters = unicodedata.normalize("NFKC", text).casefold().encode().translate(None, _WHITE_SPACE)
    return int.from_bytes(hashlib.sha256(letters).digest()[:8], "big", signed=True)


def difference_facts(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Quantiles of p_T - p_S over all sentences, and what share of them each threshold would call Teacher; `counts`: [BINS]."""
    below = np.cumsum(counts) / max(int(counts.sum()), 1)
    edges = np.linspace(-1, 1, BINS + 1)[1:]
    return {
        "quantiles": {f"{share:g}": round(float(edges[np.searchsorted(below, share)]), 3) for share in QUANTILES},
        "teacher_share": {
            f"{threshold / 10:g}": round(1 - float(below[np.searchsorted(edges, threshold / 10 - 1e-9)]), 4)
            for threshold in range(1, 10)
        },
    }
