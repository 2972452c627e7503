"""A sampled stage's prompts, with the candidates that the selection took and left, and those that filters dropped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.shard_reader import ROW
from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.candidates import SEEN
from dasd_megatron.curation.selection import SelectStepConfig
from dasd_megatron.curation.sentence_probabilities import KINDS, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.report.reader.content import Item, Piece, ResponseCard, View, sampled, shortened

COLUMNS = [*(name for name in SEEN if name not in ("student_ranks", "student_brier")), "input", "temperature"]
TAKEN, LEFT, DROPPED = "taken", "left", "dropped"


def selection_view(artifacts: Mapping[str, Artifact], stage: str, responses: int) -> View:
    """About `responses` candidates of prompts at random; sentences carry both models' probabilities."""
    select, scored = artifacts[f"select_{stage}"], artifacts[f"score_{stage}"]
    prompts = Counter(
        chain.from_iterable(batch["uuid"].to_pylist() for batch in select.batches("candidates", ["uuid"]))
    )
    chosen = sampled(prompts, max(responses * len(prompts) // max(prompts.total(), 1), 1))
    found: dict[str, str] = {}
    cards: dict[str, list[ResponseCard]] = defaultdict(list)
    config = SelectStepConfig.model_validate({"threads": 1, **select.manifest["config"]})
    for row, candidate, taken in _candidates(select, scored, chosen):
        found[row["uuid"]] = row["input"]
        cards[row["uuid"]].append(_card(row, candidate, taken, config))
    for row in artifacts[f"filter_{stage}"].rows("dropped", ["uuid", "input", "reason", "tokens", "text"]):
        if row["uuid"] in chosen:
            cards[row["uuid"]].append(dropped_card("teacher", row))
    order = [TAKEN, LEFT, DROPPED]
    items = [
        Item(uuid, prompt, sorted(cards[uuid], key=lambda card: order.index(card.marks[0])))
        for uuid, prompt in found.items()
    ]
    score = config.selection.score.replace("_", " ")
    about = (
        f"What the selection took and left by {score}, and what filters dropped. Sentences are shaded by "
        "p(teacher) − p(student): blue where the teacher finds them likelier."
    )
    return View(f"{stage.replace('_', ' ')}: candidates", about, len(prompts), items)


def dropped_card(writer: str, row: Mapping[str, Any]) -> ResponseCard:
    """A response that a filter dropped, with its reason."""
    marks = [DROPPED, row["reason"].replace("_", " ")]
    return ResponseCard(writer, marks, [f"{row['tokens']:,} tokens"], shortened([Piece(row["text"])]))


def _candidates(
    select: Artifact, scored: Artifact, prompts: set[str]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], bool]]:
    """(scored response, its scores, whether it was taken) of these prompts' candidates."""
    wanted = pa.array(sorted(prompts))
    for shard in range(len(select.shards("candidates"))):
        candidates = select.read("candidates", None, shard)
        rows = np.flatnonzero(pc.is_in(candidates["uuid"], wanted).to_numpy(zero_copy_only=False))
        if not len(rows):
            continue
        taken = set(select.read("responses", [ROW], shard)[ROW].to_pylist())
        responses = numpy_rows(scored.reader("responses", shard, COLUMNS).take(rows))
        for row, response, scores in zip(rows, responses, candidates.take(rows).to_pylist(), strict=True):
            yield response, scores, int(row) in taken


def _card(row: Mapping[str, Any], candidate: Mapping[str, Any], taken: bool, config: SelectStepConfig) -> ResponseCard:
    score = config.selection.score
    facts = [
        f"{score.replace('_', ' ')} {candidate[score]:.3f}",
        ", ".join(f"{candidate[kind]} {kind}" for kind in KINDS) + " sentences",
        f"{len(row['logprobs']):,} tokens",
    ]
    splitter = SentenceSplitter(config.sentence_end, config.min_sentence_bytes)
    pieces = shortened(_pieces(row, splitter, config.selection))
    return ResponseCard(f"teacher, T={row['temperature']:g}", [TAKEN if taken else LEFT], facts, pieces)


def _pieces(row: Mapping[str, Any], splitter: SentenceSplitter, selection: SelectionConfig) -> Sequence[Piece]:
    found = sentence_probabilities(row, splitter, selection.mean)
    teacher, student = (dict(zip(found.numbers, side, strict=True)) for side in (found.teacher, found.student))
    return [
        Piece(text, float(teacher[number]), float(student[number])) if number in teacher else Piece(text)
        for number, text in enumerate(splitter.split(row["text"]))
    ]
