"""Step `select`: of each prompt's candidates those richest in Teacher sentences, or random ones, under a budget."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dasd_megatron.artifacts.hashing import hash_json
from dasd_megatron.curation.divergence import KINDS, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.sampling.engine import sample_seed
from dasd_megatron.step import StepContext

# Every candidate with its scores, chosen or not: what a study of the selection needs.
CANDIDATES = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("chosen", pa.bool_()),
        ("share_above", pa.float32()),
        ("mean_difference", pa.float32()),
        ("mean_log_ratio", pa.float32()),
        ("sentences", pa.int32()),
    ]
)
# Sentences of the first candidates, for the report's figure.
SENTENCES = pa.schema([("teacher", pa.float32()), ("student", pa.float32()), ("kind", pa.string())])
MAX_SENTENCES = 20_000


@dataclass(frozen=True)
class Candidate:
    """One response to choose or not. `text_hash` tells equal responses to one prompt."""

    uuid: str
    sample_index: int
    scores: Mapping[str, float]
    sentences: int
    text_hash: str


def run(context: StepContext) -> dict[str, Any]:
    """Two passes: one scores every candidate, the other writes the chosen ones; one shard is in memory at a time."""
    responses, selection = context.artifact("responses"), context.config["selection"]
    splitter = SentenceSplitter(context.config["sentence_end"])
    candidates: list[Candidate] = []
    sentences: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    for row in responses.rows("responses"):
        probabilities = sentence_probabilities(row, splitter)
        of_row = probabilities.kinds(selection["threshold"])
        kinds.update(of_row)
        if len(sentences) < MAX_SENTENCES:
            triples = zip(probabilities.teacher, probabilities.student, of_row, strict=True)
            sentences += [{"teacher": t, "student": s, "kind": kind} for t, s, kind in triples]
        scores = probabilities.scores(selection["threshold"])
        candidates.append(Candidate(row["uuid"], row["sample_index"], scores, len(of_row), hash_json(row["text"])))

    chosen = choose(candidates, selection, context.config["seed"])
    for index in range(len(responses.shards("responses"))):
        table = responses.read_shard("responses", index)
        keys = zip(table["uuid"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
        context.output.write_shard(
            "responses", index, table.filter(pa.array([key in chosen for key in keys], pa.bool_()))
        )
    context.output.write_shard("candidates", 0, _candidate_table(candidates, chosen))
    context.output.write_shard("sentences", 0, pa.Table.from_pylist(sentences[:MAX_SENTENCES], SENTENCES))
    picked = [c.scores["share_above"] for c in candidates if (c.uuid, c.sample_index) in chosen]
    return {
        "counts": {
            "candidates": len(candidates),
            "prompts": len({c.uuid for c in candidates}),
            "responses": len(chosen),
        },
        "sentence_kinds": {kind: kinds[kind] for kind in KINDS},
        "mean_share_above": {
            "candidates": float(np.mean([c.scores["share_above"] for c in candidates])),
            "chosen": float(np.mean(picked)),
        },
    }


def choose(candidates: Iterable[Candidate], selection: Mapping[str, Any], seed: int) -> set[tuple[str, int]]:
    """(uuid, sample_index) of the chosen candidates.

    Choice is within a prompt, so that topics on which the models differ don't crowd out the others: best score first,
    ties by mean difference; an exact repeat of a better candidate is passed over. A budget in all takes every prompt's
    first choice before any second one, prompts in random order.
    """
    by_prompt: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_prompt[candidate.uuid].append(candidate)

    def rank(candidate: Candidate) -> tuple[float, ...]:
        chance = sample_seed(seed, "select", candidate.uuid, candidate.sample_index)
        if selection["method"] == "random":
            return (chance,)
        return (-candidate.scores[selection["score"]], -candidate.scores["mean_difference"], chance)

    order: list[tuple[int, int, tuple[str, int]]] = []
    for uuid, group in by_prompt.items():
        seen: set[str] = set()
        for candidate in sorted(group, key=rank):
            if candidate.text_hash in seen or len(seen) == selection["responses_per_prompt"]:
                continue
            order.append((len(seen), sample_seed(seed, "budget", uuid), (uuid, candidate.sample_index)))
            seen.add(candidate.text_hash)
    return {key for _, _, key in sorted(order)[: selection["total"]]}


def _candidate_table(candidates: Iterable[Candidate], chosen: set[tuple[str, int]]) -> pa.Table:
    rows = [
        {
            "uuid": c.uuid,
            "sample_index": c.sample_index,
            "chosen": (c.uuid, c.sample_index) in chosen,
            "sentences": c.sentences,
            **c.scores,
        }
        for c in candidates
    ]
    return pa.Table.from_pylist(rows, CANDIDATES)
