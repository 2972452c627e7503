"""Step `select`: of each prompt's candidates those richest in Teacher sentences, or random ones, under a budget."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.shard_reader import ROW
from dasd_megatron.config.base import NonNegative
from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.candidates import MAX_SENTENCES, SEEN, CandidateScorer, difference_facts
from dasd_megatron.curation.choice import budget_of, choose
from dasd_megatron.curation.data_step import DataStepKind
from dasd_megatron.curation.sentence_probabilities import KINDS
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.steps.cost_estimate import CANDIDATE, Cost, Documents, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import ShardWork, StepConfig, StepContext
from dasd_megatron.utils.errors import UserError


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
    tokens_per_second: ClassVar[float] = 3.3e6

    def shard_count(self, context: StepContext[SelectStepConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[SelectStepConfig]) -> ShardWork:
        """Scores a shard's candidates."""
        responses, config = context.artifact("responses"), context.config
        splitter = SentenceSplitter(config.sentence_end, config.min_sentence_bytes)
        sentences = -(-MAX_SENTENCES // self.shard_count(context))

        def score(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            batches = responses.batches("responses", SEEN, shard)
            rows = chain.from_iterable(map(numpy_rows, batches))
            return CandidateScorer(config.selection, splitter, sentences).tables(rows)

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
        _say_too_few(context.name, config.selection, candidates, chosen)
        counts = [table["counts"][0].values.to_numpy() for table in context.output.tables("differences")]
        return {**_facts(candidates, chosen, config.selection), "difference": difference_facts(np.sum(counts, axis=0))}

    def documents(self, config: SelectStepConfig, inputs: InputEstimates) -> Documents:
        """Each prompt's quota, as far as there are candidates and the budget goes."""
        candidates, selection = inputs.documents("responses"), config.selection
        count = min(candidates.count, candidates.prompts * selection.responses_per_prompt)
        count = min(count, budget_of(selection) or count)
        return replace(candidates, prompts=min(candidates.prompts, count), count=count)

    def cost(self, config: SelectStepConfig, inputs: InputEstimates) -> Cost:
        """Every candidate's scores."""
        return pass_through_cost(inputs, inputs.documents("responses").count * CANDIDATE)


def _say_too_few(step: str, selection: SelectionConfig, candidates: pa.Table, chosen: NDArray[np.bool_]) -> None:
    """Where there are fewer responses than the budget, in all or of a domain. Raises UserError where there are none."""
    taken = Counter(name or "none" for name in candidates.filter(pa.array(chosen))["domain"].to_pylist())
    wanted = selection.total if isinstance(selection.total, dict) else {"": selection.total or 0}
    for domain, count in wanted.items():
        found = taken[domain] if domain else taken.total()
        if found < count:
            key = f"selection.total.{domain}" if domain else "selection.total"
            print(f"{step}: {key}={count:,}, but there are {found:,} responses", file=sys.stderr)
    if not taken:
        there = Counter(name or "none" for name in candidates["domain"].to_pylist())
        names = ", ".join(f"{name} {count:,}" for name, count in there.most_common())
        raise UserError(f"{step}: no response is chosen; there are, by domain: {names}; change selection.total")


def _facts(candidates: pa.Table, chosen: NDArray[np.bool_], selection: SelectionConfig) -> dict[str, Any]:
    """For the manifest."""
    shares = candidates["share_above"].to_numpy()
    return {
        "counts": {
            "candidates": len(candidates),
            "prompts": pc.count_distinct(candidates["uuid"]).as_py(),
            "prompts_with_a_choice": _with_a_choice(candidates),
            "repeated_texts": len(candidates) - pc.count_distinct(candidates["text_hash"]).as_py(),
            "responses": int(chosen.sum()),
        },
        "domains": dict(Counter(name or "none" for name in candidates.filter(pa.array(chosen))["domain"].to_pylist())),
        "sentence_kinds": {kind: pc.sum(candidates[kind]).as_py() for kind in KINDS},
        "threshold": selection.threshold,
        "mean_share_above": {"candidates": float(np.mean(shares)), "chosen": float(np.mean(shares[chosen]))},
    }


def _with_a_choice(candidates: pa.Table) -> int:
    """Prompts of which at least two different responses are left."""
    texts = candidates.group_by("uuid").aggregate([("text_hash", "count_distinct")])["text_hash_count_distinct"]
    return int(np.sum(texts.to_numpy() > 1))
