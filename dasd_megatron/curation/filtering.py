"""Step `filter`: sampled responses in canonical form and in the student's tokens; what training must not see is dropped.

Each dropped row is kept, readable, in the table `dropped` with its reason, and counted in the manifest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dasd_megatron.config.base import Positive
from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.curation.filters.filter import FilterSetup, StudentView
from dasd_megatron.curation.filters.registry import build_filters
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.models.hf_config import max_positions
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.steps.cost_estimate import FILTERED as FILTERED_BYTES
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import ShardedStepKind, StepConfig, StepContext
from dasd_megatron.tokenization.response_format import response_format, response_tokens
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer
from dasd_megatron.utils.errors import UserError

# `text` is the canonical text from here on; *_starts are byte offsets in it (see Response and byte_spans).
FILTERED = pa.schema(
    [
        *RESPONSES,
        ("token_starts", pa.list_(pa.int32())),
        ("prefix_bytes", pa.int32()),
        ("student_prompt_ids", pa.list_(pa.int32())),
        ("student_token_ids", pa.list_(pa.int32())),  # the response, end of turn included
        ("student_token_starts", pa.list_(pa.int32())),
    ]
)
DROPPED = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("reason", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("input", pa.string()),
        ("text", pa.string()),
    ]
)


class FilterConfig(StepConfig):
    """Config of a step `filter`."""

    teacher: ModelConfig
    student: ModelConfig
    filters: FiltersConfig
    sentence_end: str
    context_length: Positive
    # Of the engine that will score what is kept.
    max_length: Positive | None


class FilterStep(ShardedStepKind[FilterConfig]):
    """Reads `responses`, and knows the tokenizers of `teacher` and `student`; each shard of responses gives a shard of kept
    ones and one of dropped ones."""

    name = "filter"
    command = "curate"

    def shard_count(self, context: StepContext[FilterConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[FilterConfig]) -> Callable[[int], Mapping[str, pa.Table]]:
        """Loads the tokenizers; filters a shard."""
        responses, config = context.artifact("responses"), context.config
        rule = ResponseFilter(
            config=config,
            teacher=open_tokenizer(context.inputs["teacher"], config.teacher),
            student=open_tokenizer(context.inputs["student"], config.student),
            max_document_tokens=_max_document_tokens(config, context.inputs["student"]),
        )

        def work(shard: int) -> Mapping[str, pa.Table]:
            kept, dropped = [], []
            for row in responses.read_shard("responses", shard).to_pylist():
                reason, filtered = rule.apply(row)
                if reason is None:
                    kept.append(filtered)
                else:
                    dropped.append({**filtered, "reason": reason, "tokens": len(row["token_ids"])})
            return {
                "dropped": pa.Table.from_pylist(dropped, DROPPED),
                self.table: pa.Table.from_pylist(kept, FILTERED),
            }

        return work

    def summarize(self, context: StepContext[FilterConfig]) -> dict[str, Any]:
        """Kept and dropped responses, these by reason."""
        kept = sum(len(table) for table in context.output.tables(self.table, ["uuid"]))
        reasons: Counter[str] = Counter()
        for table in context.output.tables("dropped", ["reason"]):
            reasons.update(table["reason"].to_pylist())
        if not kept:
            raise UserError(
                f"{context.name}: not one response passed the filters (dropped: {dict(reasons)}); see the reasons in "
                f"{context.output.path}/dropped-*.parquet, and raise sampling.max_tokens or loosen filters"
            )
        return {"counts": {"responses": kept, "dropped": reasons.total()}, "dropped": dict(reasons)}

    def documents(self, config: FilterConfig, inputs: InputEstimates) -> Documents:
        """Everything that the teacher began; of what it continued, the expected share."""
        made = inputs.documents("responses")
        return made.fewer(inputs.expected.kept_continuations) if made.prefix else made

    def cost(self, config: FilterConfig, inputs: InputEstimates) -> Cost:
        """What is kept, in the student's tokens, too."""
        return pass_through_cost(inputs, FILTERED_BYTES)


class ResponseFilter:
    """Decides about one response at a time."""

    def __init__(
        self, config: FilterConfig, teacher: ChatTokenizer, student: ChatTokenizer, max_document_tokens: int
    ) -> None:
        self._student = student
        self._format = response_format(config.teacher.response_format, teacher)
        splitter = SentenceSplitter(config.sentence_end)
        self._filters = build_filters(FilterSetup(config.filters, student, splitter, max_document_tokens))

    def apply(self, row: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """(None, the row in the student's terms), or (reason, the row with its text made canonical)."""
        stopped = row["finish_reason"] == "stop"
        response = self._format.parse(row["prompt_ids"], row["prefix_ids"], row["token_ids"], stopped)
        filtered = {**row, "text": response.text, "prefix_bytes": response.prefix_bytes}
        if not stopped:
            return "truncated", filtered
        if response.problem:
            return response.problem, filtered
        prompt_ids = self._student.prompt_ids(row["input"])
        student_ids, student_starts = response_tokens(self._student, prompt_ids, response.text)
        view = StudentView(row, response.text, prompt_ids, student_ids)
        reason = next((found for rule in self._filters if (found := rule.reason(view)) is not None), None)
        return reason, {
            **filtered,
            "token_starts": response.token_starts,
            "student_prompt_ids": prompt_ids,
            "student_token_ids": student_ids,
            "student_token_starts": student_starts,
        }


def _max_document_tokens(config: FilterConfig, student: Path) -> int:
    """Tokens of the longest document: it must fit a pack, the student's positions, and an engine that scores it."""
    positions = config.max_length or max_positions(student) or sys.maxsize
    return min(config.context_length, positions - 1)
