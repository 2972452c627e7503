"""Step `select`: of each prompt's candidates those richest in Teacher sentences, or random ones, under a budget."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.shard_reader import ROW
from dasd_megatron.config.base import NonNegative
from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.data_step import DataStepKind
from dasd_megatron.curation.scores import BUILTIN, scores_of
from dasd_megatron.curation.sentence_probabilities import KINDS, SentenceProbabilities, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import CANDIDATE, Cost, Documents, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import ShardWork, StepConfig, StepContext

# Every candidate with its scores, chosen or not, in the order of the scored responses: what a study of the selection needs.
CANDIDATES = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("text_hash", pa.int64()),  # tells equal responses to one prompt
        *((name, pa.float32()) for name in BUILTIN),
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
SEEN = ["uuid", "sample_index", "text", "logprobs", "token_starts", "student_logprobs", "student_token_starts"]


class SelectStepConfig(StepConfig):
    """Config of a step `select`."""

    selection: SelectionConfig
    sentence_end: str
    min_sentence_bytes: NonNegative
    seed: int


class SelectStep(DataStepKind[SelectStepConfig]):
    """Reads scored `responses`. Each shard is scored on its own; who is chosen is decided at the end, by the scores of all."""

    name = "select"
    command = "curate"
    table: ClassVar[str] = "candidates"
    extends: ClassVar[Mapping[str, str]] = {"responses": "responses"}
    tokens_per_second: ClassVar[float] = 3e6

    def shard_count(self, context: StepContext[SelectStepConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[SelectStepConfig]) -> ShardWork:
        """Scores a shard's candidates."""
        responses, config = context.artifact("responses"), context.config
        scorer = CandidateScorer(config)
        sentences = -(-MAX_SENTENCES // self.shard_count(context))

        def score(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            left, differences = sentences, np.zeros(BINS, np.int64)
            for batch in responses.batches("responses", SEEN, shard):
                candidates, found = scorer.score(batch, left, differences)
                left -= len(found)
                yield {"sentences": found, self.table: candidates}
            yield {"differences": pa.Table.from_pylist([{"counts": differences}], DIFFERENCES)}

        return score

    def summarize(self, context: StepContext[SelectStepConfig]) -> dict[str, Any]:
        """Chooses; writes which rows of the table `responses` stay."""
        config = context.config
        shards = list(context.output.tables(self.table))
        candidates = pa.concat_tables(shards)
        chosen = choose(candidates, config.selection, config.seed)
        start = 0
        for shard, content in enumerate(shards):
            rows = np.flatnonzero(chosen[start : start + len(content)]).astype(np.int32)
            context.output.write_shard("responses", shard, pa.table({ROW: rows}))
            start += len(content)
        counts = [table["counts"][0].values.to_numpy() for table in context.output.tables("differences")]
        return {**_facts(candidates, chosen, config.selection), "difference": difference_facts(np.sum(counts, axis=0))}

    def documents(self, config: SelectStepConfig, inputs: InputEstimates) -> Documents:
        """Each prompt's quota, as far as there are candidates and the budget goes."""
        candidates, selection = inputs.documents("responses"), config.selection
        count = min(candidates.count, candidates.prompts * selection.responses_per_prompt)
        count = min(count, selection.total or count)
        return replace(candidates, prompts=min(candidates.prompts, count), count=count)

    def cost(self, config: SelectStepConfig, inputs: InputEstimates) -> Cost:
        """Every candidate's scores."""
        return pass_through_cost(inputs, inputs.documents("responses").count * CANDIDATE)


class CandidateScorer:
    """Scores responses by their sentences."""

    def __init__(self, config: SelectStepConfig) -> None:
        self._splitter = SentenceSplitter(config.sentence_end, config.min_sentence_bytes)
        self._threshold, self._mean = config.selection.threshold, config.selection.mean
        self._names = list(dict.fromkeys([*BUILTIN, config.selection.score]))

    def score(self, responses: pa.Table, sentences: int, differences: NDArray[np.int64]) -> tuple[pa.Table, pa.Table]:
        """The candidates, and up to that many of their sentences; all of these are counted in `differences`, [BINS]."""
        rows: list[dict[str, Any]] = []
        examples: list[dict[str, Any]] = []
        for row in numpy_rows(responses):
            found = sentence_probabilities(row, self._splitter, self._mean)
            kinds = found.kinds(self._threshold)
            counts = Counter(kinds)
            differences += np.histogram(found.difference, BINS, (-1, 1))[0]
            rows.append(
                {
                    "uuid": row["uuid"],
                    "sample_index": row["sample_index"],
                    "text_hash": text_hash(row["text"]),
                    **scores_of(found, self._names, self._threshold),
                    **{kind: counts[kind] for kind in KINDS},
                }
            )
            if len(examples) < sentences:
                examples += _examples(found, kinds)
        return pa.Table.from_pylist(rows, self._schema()), pa.Table.from_pylist(examples[:sentences], SENTENCES)

    def _schema(self) -> pa.Schema:
        schema = CANDIDATES
        for name in self._names[len(BUILTIN) :]:
            schema = schema.append(pa.field(name, pa.float32()))
        return schema


def _examples(found: SentenceProbabilities, kinds: list[str]) -> list[dict[str, Any]]:
    triples = zip(found.teacher, found.student, kinds, strict=True)
    return [{"teacher": teacher, "student": student, "kind": kind} for teacher, student, kind in triples]


def text_hash(text: str) -> int:
    """64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def choose(candidates: pa.Table, selection: SelectionConfig, seed: int) -> NDArray[np.bool_]:
    """Whether each candidate (schema CANDIDATES) is chosen, [candidates].

    Choice is within a prompt, so that topics on which the models differ don't crowd out the others: best score first,
    ties by mean difference; an exact repeat of a better candidate is skipped. A budget in all takes every prompt's
    first choice before any second one, prompts in random order.
    """
    uuids, indices = candidates["uuid"].to_pylist(), candidates["sample_index"].to_pylist()
    keys = [np.array([sample_seed(seed, "select", uuid, index) for uuid, index in zip(uuids, indices, strict=True)])]
    if selection.method == "divergence":
        keys += [-candidates[name].to_numpy() for name in ("mean_difference", selection.score)]
    encoded = candidates["uuid"].combine_chunks().dictionary_encode()
    prompts, hashes = encoded.indices.to_numpy(), candidates["text_hash"].to_numpy()
    of_prompt = [sample_seed(seed, "budget", uuid) for uuid in encoded.dictionary.to_pylist()]
    seen: list[set[int]] = [set() for _ in of_prompt]
    order: list[tuple[int, int, int]] = []
    for place in np.lexsort([*keys, prompts]).tolist():
        taken = seen[prompts[place]]
        if hashes[place] not in taken and len(taken) < selection.responses_per_prompt:
            order.append((len(taken), of_prompt[prompts[place]], place))
            taken.add(hashes[place])
    chosen = np.zeros(len(candidates), np.bool_)
    chosen[[place for _, _, place in sorted(order)[: selection.total]]] = True
    return chosen


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


def _facts(candidates: pa.Table, chosen: NDArray[np.bool_], selection: SelectionConfig) -> dict[str, Any]:
    """For the manifest."""
    shares = candidates["share_above"].to_numpy()
    return {
        "counts": {
            "candidates": len(candidates),
            "prompts": pc.count_distinct(candidates["uuid"]).as_py(),
            "prompts_with_a_choice": _with_a_choice(candidates),
            "responses": int(chosen.sum()),
        },
        "sentence_kinds": {kind: pc.sum(candidates[kind]).as_py() for kind in KINDS},
        "threshold": selection.threshold,
        "mean_share_above": {"candidates": float(np.mean(shares)), "chosen": float(np.mean(shares[chosen]))},
    }


def _with_a_choice(candidates: pa.Table) -> int:
    """Prompts of which at least two different responses are left."""
    texts = candidates.group_by("uuid").aggregate([("text_hash", "count_distinct")])["text_hash_count_distinct"]
    return int(np.sum(texts.to_numpy() > 1))
