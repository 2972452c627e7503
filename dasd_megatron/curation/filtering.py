"""Step `filter`: sampled responses in canonical form and in the student's tokens; what training must not see is dropped.

Each dropped row is kept, readable, in the table `dropped` with its reason, and counted in the manifest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.shard_reader import ROW
from dasd_megatron.config.base import Positive
from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.prompts import Grader
from dasd_megatron.curation.data_step import DataStepKind
from dasd_megatron.curation.filters.filter import FilterSetup, StudentView
from dasd_megatron.curation.filters.registry import build_filters
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.models.hf_config import max_positions
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.steps.cost_estimate import FILTERED as FILTERED_BYTES
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates, pass_through_cost
from dasd_megatron.steps.empty_result import refuse_empty
from dasd_megatron.steps.step import ShardWork, StepConfig, StepContext
from dasd_megatron.tokenization.response_format import response_format, response_tokens
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer

# Of each response that is kept, what is added to its row (sampling/responses.py). `text` is the canonical text from here on;
# *_starts are byte offsets in it (see Response and byte_spans).
FILTERED = pa.schema(
    [
        (ROW, pa.int32()),
        ("text", pa.string()),
        ("token_starts", pa.list_(pa.int32())),
        ("prefix_bytes", pa.int32()),
        ("student_prompt_ids", pa.list_(pa.int32())),
        ("student_token_ids", pa.list_(pa.int32())),  # the response, end of turn included
        ("student_token_starts", pa.list_(pa.int32())),
        ("student_prompt_tokens", pa.int32()),
        ("student_tokens", pa.int32()),  # how many student_token_ids
    ]
)
# Of a sampled response, what filters see.
SEEN = [name for name in RESPONSES.names if name not in ("logprobs", "text")]
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
    # Tells wrong answers, to drop them; None: they stay.
    grader: Grader | None = None


class FilterStep(DataStepKind[FilterConfig]):
    """Reads `responses`, and knows the tokenizers of `teacher` and `student`; each shard of responses gives a shard of what is
    added to kept ones, and one of dropped ones."""

    name = "filter"
    command = "curate"
    extends: ClassVar[Mapping[str, str]] = {"responses": "responses"}
    tokens_per_second: ClassVar[float] = 450e3

    def shard_count(self, context: StepContext[FilterConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[FilterConfig]) -> ShardWork:
        """Loads the tokenizers; filters a shard."""
        responses = context.artifact("responses")
        rule = ResponseFilter.open(context.config, context.inputs["teacher"], context.inputs["student"])

        def work(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            number = 0
            for batch in responses.batches("responses", SEEN, shard):
                kept, dropped = [], []
                for reason, filtered in rule.apply(numpy_rows(batch)):
                    if reason is None:
                        kept.append({**filtered, ROW: number})
                    else:
                        dropped.append({**filtered, "reason": reason})
                    number += 1
                yield {
                    "dropped": pa.Table.from_pylist(dropped, DROPPED),
                    self.table: pa.Table.from_pylist(kept, FILTERED),
                }

        return work

    def summarize(self, context: StepContext[FilterConfig]) -> dict[str, Any]:
        """Kept and dropped responses, these by reason."""
        kept = sum(len(table) for table in context.output.tables(self.table, [ROW]))
        reasons: Counter[str] = Counter()
        for table in context.output.tables("dropped", ["reason"]):
            reasons.update(table["reason"].to_pylist())
        if not kept:
            refuse_empty(
                context.config,
                f"{context.name}: not one response passed the filters (dropped: {dict(reasons)}); see the reasons in "
                f"{context.output.path}/dropped-*.parquet, and raise sampling.max_tokens or loosen filters",
            )
        return {"counts": {"responses": kept, "dropped": reasons.total()}, "dropped": dict(reasons)}

    def documents(self, config: FilterConfig, inputs: InputEstimates) -> Documents:
        """Everything that the teacher began; of what it continued, the expected share."""
        made = inputs.documents("responses")
        return made.fewer(inputs.expected.kept_continuations) if made.prefix else made

    def cost(self, config: FilterConfig, inputs: InputEstimates) -> Cost:
        """What is kept, in the student's tokens."""
        return pass_through_cost(inputs, inputs.own_documents().bytes(FILTERED_BYTES))


class ResponseFilter:
    """Decides about responses, and puts those that stay into the student's terms."""

    def __init__(
        self, config: FilterConfig, teacher: ChatTokenizer, student: ChatTokenizer, max_document_tokens: int
    ) -> None:
        self._student = student
        self._prompt_ids = lru_cache(maxsize=1)(student.prompt_ids)  # the candidates of a prompt come one after another
        self._format = response_format(config.teacher.response_format, teacher)
        splitter = SentenceSplitter(config.sentence_end)
        self._filters = build_filters(
            FilterSetup(config.filters, student, splitter, max_document_tokens, config.grader)
        )

    @classmethod
    def open(cls, config: FilterConfig, teacher: Path, student: Path) -> ResponseFilter:
        """With the tokenizers of these model folders."""
        return cls(
            config=config,
            teacher=open_tokenizer(teacher, config.teacher),
            student=open_tokenizer(student, config.student),
            max_document_tokens=_max_document_tokens(config, student),
        )

    def apply(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str | None, dict[str, Any]]]:
        """Of each row (None, the row with what FILTERED adds), or (reason, the row with its text made canonical)."""
        found = [self._parsed(row) for row in rows]
        sound = [row for reason, row in found if reason is None]
        for row in sound:
            row["student_prompt_ids"] = self._prompt_ids(row["input"])
        answers = response_tokens(self._student, [(row["student_prompt_ids"], row["text"]) for row in sound])
        for row, (ids, starts) in zip(sound, answers, strict=True):
            row.update(
                student_token_ids=ids,
                student_token_starts=starts,
                student_prompt_tokens=len(row["student_prompt_ids"]),
                student_tokens=len(ids),
            )
        return [(self._reason(row) if reason is None else reason, row) for reason, row in found]

    def _parsed(self, row: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        stopped = row["finish_reason"] == "stop"
        response = self._format.parse(row["prompt_ids"], row["prefix_ids"], row["token_ids"], stopped)
        parsed = {
            **row,
            "text": response.text,
            "prefix_bytes": response.prefix_bytes,
            "token_starts": response.token_starts,
        }
        return (response.problem if stopped else "truncated"), parsed

    def _reason(self, row: Mapping[str, Any]) -> str | None:
        view = StudentView(row, row["text"], row["student_prompt_ids"], row["student_token_ids"])
        return next((found for rule in self._filters if (found := rule.reason(view)) is not None), None)


def _max_document_tokens(config: FilterConfig, student: Path) -> int:
    """Tokens of the longest document: it must fit a pack, the student's positions, and an engine that scores it."""
    positions = config.max_length or max_positions(student) or sys.maxsize
    return min(config.context_length, positions - 1)
