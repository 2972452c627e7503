"""A mixed-policy stage's responses: what the student wrote, where it was cut, and how the teacher went on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, cycle, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.report.reader.content import Item, Piece, ResponseCard, View, sampled, shortened
from dasd_megatron.report.reader.selection_view import dropped_card
from dasd_megatron.tokenization.response_format import OPEN

KEPT = "kept"


def mixed_policy_view(artifacts: Mapping[str, Artifact], stage: str, responses: int) -> View:
    """About `responses` of them, at random."""
    filtered = artifacts[f"filter_{stage}"]
    tables = ("responses", "dropped")
    ids = [
        uuid for table in tables for batch in _batches(filtered, table, ["uuid"]) for uuid in batch["uuid"].to_pylist()
    ]
    turns = f"turns_{stage}" in artifacts
    chosen = sampled(ids, max(responses // (1 if turns else 2), 1))
    own = (
        {}
        if turns
        else {row["uuid"]: row["text"] for row in _rows(artifacts[f"rollout_{stage}"], "responses", ["text"], chosen)}
    )
    names = ["input", "text", "turn_bytes" if turns else "prefix_bytes"]
    items = [
        Item(row["uuid"], row["input"], [_kept_card(row), *_answer_card(row, own)])
        for row in _rows(filtered, "responses", names, chosen)
    ]
    items += [
        Item(row["uuid"], row["input"], [dropped_card("student and teacher", row)])
        for row in _rows(filtered, "dropped", ["input", "text", "tokens", "reason"], chosen)
    ]
    about = "What the student wrote is orange, what the teacher wrote is blue" + (
        "; each took its turn." if turns else "; beside it the student's own answer, and what of it was cut away."
    )
    return View(f"{stage.replace('_', ' ')}: responses", about, len(set(ids)), items)


def _batches(artifact: Artifact, table: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    return artifact.batches(table, columns) if artifact.shards(table) else iter(())


def _rows(artifact: Artifact, table: str, columns: Sequence[str], ids: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of these prompts, with their ids."""
    wanted = pa.array(sorted(ids))
    for shard in range(len(artifact.shards(table))):
        found = pc.is_in(artifact.read(table, ["uuid"], shard)["uuid"], wanted)
        rows = np.flatnonzero(found.to_numpy(zero_copy_only=False))
        if len(rows):
            yield from artifact.reader(table, shard, ["uuid", *columns]).take(rows).to_pylist()


def _kept_card(row: Mapping[str, Any]) -> ResponseCard:
    data = row["text"].encode()
    turns: list[int] = (
        row["turn_bytes"] if "turn_bytes" in row else [row["prefix_bytes"], len(data) - row["prefix_bytes"]]
    )
    before = len(data) - sum(turns)  # what the chat template has written
    pieces = [Piece(data[:before].decode())]
    for (start, end), writer in zip(
        pairwise(accumulate(turns, initial=before)), cycle(("student", "teacher")), strict=False
    ):
        pieces.append(Piece(data[start:end].decode(errors="replace"), writer=writer))
    title = "in turns" if "turn_bytes" in row else "begun by the student, ended by the teacher"
    return ResponseCard(
        title, [KEPT], [f"{len(row['text']):,} characters"], shortened([piece for piece in pieces if piece.text])
    )


def _answer_card(row: Mapping[str, Any], own: Mapping[str, str]) -> list[ResponseCard]:
    """The student's whole answer: what of it was taken, and what was cut away."""
    text = own.get(row["uuid"])
    if text is None:
        return []
    prefix = row["text"].encode()[: row["prefix_bytes"]].decode()
    # Without what the chat template has written.
    taken = next((own for own in (prefix, prefix.removeprefix(OPEN).lstrip("\n")) if text.startswith(own)), "")
    pieces = [Piece(taken, writer="student"), Piece(text[len(taken) :], writer="rejected")]
    facts = [f"cut after {len(taken):,} of {len(text):,} characters"]
    return [ResponseCard("the student's own answer", [], facts, shortened([piece for piece in pieces if piece.text]))]
