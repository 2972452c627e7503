"""Step `filter`: sampled responses in canonical form and in the student's tokens; what training must not see is set aside.

Each dropped row is kept, readable, in the table `dropped` with its reason, and counted in the manifest.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.curation.repetition import repetition_problem
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.errors import UserError
from dasd_megatron.sampling.sample import RESPONSES, open_tokenizer
from dasd_megatron.step import StepContext
from dasd_megatron.tokenization.response_format import Response, response_format, response_tokens
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

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


class FilterStep:
    """See ShardedStep; each shard of responses gives a shard of kept ones and one of dropped ones."""

    table = "responses"

    def shard_count(self, context: StepContext) -> int:
        """See ShardedStep."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """See ShardedStep."""
        responses = context.artifact("responses")
        rule = ResponseFilter(
            teacher=open_tokenizer(context, "teacher", context.config["teacher"]),
            student=open_tokenizer(context, "student", context.config["student"]),
            config=context.config,
            longest=_longest(context),
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

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """See ShardedStep."""
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


class ResponseFilter:
    """Decides about one response at a time."""

    def __init__(self, teacher: ChatTokenizer, student: ChatTokenizer, config: Mapping[str, Any], longest: int) -> None:
        self._student = student
        self._format = response_format(config["teacher"]["response_format"], teacher)
        self._splitter = SentenceSplitter(config["sentence_end"])
        self._limits = config["filters"]
        self._longest = longest  # tokens of a prompt with its response
        self._special_in_prompts = self._special_tokens(student.prompt_ids("0"))

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
        reason = self._problem(response, prompt_ids, student_ids)
        return reason, {
            **filtered,
            "token_starts": response.token_starts,
            "student_prompt_ids": prompt_ids,
            "student_token_ids": student_ids,
            "student_token_starts": student_starts,
        }

    def _special_tokens(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._student.special_ids]

    def _problem(self, response: Response, prompt_ids: list[int], student_ids: list[int]) -> str | None:
        # A marker written out in a prompt or response (<|im_end|>, say) would become the real one in the student's tokens.
        if self._special_tokens(prompt_ids) != self._special_in_prompts or self._special_tokens(student_ids[:-1]):
            return "special_token"
        if len(prompt_ids) + len(student_ids) > self._longest:
            return "too_long"
        return repetition_problem(response.text, student_ids, self._splitter, self._limits)


def _longest(context: StepContext) -> int:
    """Tokens of the longest document: it must fit a pack, the student's positions, and an engine that scores it."""
    student = json.loads((context.inputs["student"] / "config.json").read_text())
    positions: int = context.config["max_length"] or student.get("max_position_embeddings", sys.maxsize)
    length: int = context.config["context_length"]
    return min(length, positions - 1)
