"""Step `select`: of each prompt's candidates those richest in Teacher sentences, or random ones, under a budget."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.scores import BUILTIN, scores_of
from dasd_megatron.curation.sentence_probabilities import KINDS, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import SCORED, Cost, Documents, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind
from dasd_megatron.utils.hashing import hash_json

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


class SelectStepConfig(StepConfig):
    """Config of a step `select`."""

    selection: SelectionConfig
    sentence_end: str
    seed: int


class SelectStep(StepKind[SelectStepConfig]):
    """Reads scored `responses`. Two passes: one scores every candidate, the other writes the chosen ones; one shard is in
    memory at a time."""

    name = "select"
    command = "curate"

    def run(self, context: StepContext[SelectStepConfig]) -> dict[str, Any]:
        """Writes the tables `responses`, `candidates` and `sentences`."""
        responses, config = context.artifact("responses"), context.config
        scored = _score(responses, config)
        chosen = choose(scored.candidates, config.selection, config.seed)
        for index in range(len(responses.shards("responses"))):
            table = responses.read_shard("responses", index)
            keys = zip(table["uuid"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
            kept = pa.array([key in chosen for key in keys], pa.bool_())
            context.output.write_shard("responses", index, table.filter(kept))
        context.output.write_shard("candidates", 0, _candidate_table(scored.candidates, chosen, config.selection.score))
        context.output.write_shard("sentences", 0, pa.Table.from_pylist(scored.sentences[:MAX_SENTENCES], SENTENCES))
        return _facts(scored, chosen, config.selection)

    def documents(self, config: SelectStepConfig, inputs: InputEstimates) -> Documents:
        """Each prompt's quota, as far as there are candidates and the budget goes."""
        candidates, selection = inputs.documents("responses"), config.selection
        count = min(candidates.count, candidates.prompts * selection.responses_per_prompt)
        count = min(count, selection.total or count)
        return replace(candidates, prompts=min(candidates.prompts, count), count=count)

    def cost(self, config: SelectStepConfig, inputs: InputEstimates) -> Cost:
        """The chosen responses again."""
        return pass_through_cost(inputs, SCORED)


@dataclass
class _Scored:
    """Every candidate, the sentences of the first ones, and how many sentences there are of each kind."""

    candidates: list[Candidate] = field(default_factory=list)
    sentences: list[dict[str, Any]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


def _score(responses: Artifact, config: SelectStepConfig) -> _Scored:
    splitter, threshold = SentenceSplitter(config.sentence_end), config.selection.threshold
    names = dict.fromkeys([*BUILTIN, config.selection.score])
    scored = _Scored()
    for row in responses.rows("responses"):
        probabilities = sentence_probabilities(row, splitter)
        kinds = probabilities.kinds(threshold)
        scored.kinds.update(kinds)
        if len(scored.sentences) < MAX_SENTENCES:
            triples = zip(probabilities.teacher, probabilities.student, kinds, strict=True)
            scored.sentences += [{"teacher": t, "student": s, "kind": kind} for t, s, kind in triples]
        scores = scores_of(probabilities, names, threshold)
        text_hash = hash_json(row["text"])
        scored.candidates.append(Candidate(row["uuid"], row["sample_index"], scores, len(kinds), text_hash))
    return scored


def _facts(scored: _Scored, chosen: set[tuple[str, int]], selection: SelectionConfig) -> dict[str, Any]:
    """For the manifest."""
    candidates = scored.candidates
    picked = [c.scores["share_above"] for c in candidates if (c.uuid, c.sample_index) in chosen]
    return {
        "counts": {
            "candidates": len(candidates),
            "prompts": len({c.uuid for c in candidates}),
            "responses": len(chosen),
        },
        "sentence_kinds": {kind: scored.kinds[kind] for kind in KINDS},
        "threshold": selection.threshold,
        "mean_share_above": {
            "candidates": float(np.mean([c.scores["share_above"] for c in candidates])),
            "chosen": float(np.mean(picked)),
        },
    }


def choose(candidates: Iterable[Candidate], selection: SelectionConfig, seed: int) -> set[tuple[str, int]]:
    """(uuid, sample_index) of the chosen candidates.

    Choice is within a prompt, so that topics on which the models differ don't crowd out the others: best score first,
    ties by mean difference; an exact repeat of a better candidate is skipped. A budget in all takes every prompt's
    first choice before any second one, prompts in random order.
    """
    by_prompt: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_prompt[candidate.uuid].append(candidate)

    def rank(candidate: Candidate) -> tuple[float, ...]:
        chance = sample_seed(seed, "select", candidate.uuid, candidate.sample_index)
        if selection.method == "random":
            return (chance,)
        return (-candidate.scores[selection.score], -candidate.scores["mean_difference"], chance)

    order: list[tuple[int, int, tuple[str, int]]] = []
    for uuid, group in by_prompt.items():
        seen: set[str] = set()
        for candidate in sorted(group, key=rank):
            if candidate.text_hash in seen or len(seen) == selection.responses_per_prompt:
                continue
            order.append((len(seen), sample_seed(seed, "budget", uuid), (uuid, candidate.sample_index)))
            seen.add(candidate.text_hash)
    return {key for _, _, key in sorted(order)[: selection.total]}


def _candidate_table(candidates: Iterable[Candidate], chosen: set[tuple[str, int]], score: str) -> pa.Table:
    schema = CANDIDATES if score in CANDIDATES.names else CANDIDATES.append(pa.field(score, pa.float32()))
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
    return pa.Table.from_pylist(rows, schema)
