"""Step `grade`: what a grader says of answers that are there. No model is run: grading again samples nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa

from dasd_megatron.evaluation.measures import measure
from dasd_megatron.grading.registry import GRADERS, grade
from dasd_megatron.grading.verdict import Verdict
from dasd_megatron.steps.cost_estimate import Cost, InputEstimates
from dasd_megatron.steps.step import Replicas, ShardByShardKind, ShardWork, StepConfig, StepContext
from dasd_megatron.utils.errors import UserError

VERDICTS = pa.schema(
    [
        ("correct", pa.bool_()),
        ("extracted", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
# The reason of an answer that isn't right, and was cut off.
TRUNCATED = "truncated"
# Answers that are in memory at a time.
_BATCH = 64


class GradeConfig(StepConfig):
    """Config of a step `grade`."""

    grader: str


class GradeStep(ShardByShardKind[GradeConfig]):
    """Reads `answers`, and the references of `prompts`; a shard is one of the answers'. Adds its columns to their table."""

    name = "grade"
    command = "evaluate"
    table = "answers"
    extends: ClassVar[Mapping[str, str]] = {"answers": "answers"}

    def processes(self, config: GradeConfig) -> Replicas:
        """One for each core."""
        return Replicas(count=None, gpus_each=0)

    def shard_count(self, context: StepContext[GradeConfig]) -> int:
        """The answers'."""
        return len(context.artifact("answers").shards("answers"))

    def open(self, context: StepContext[GradeConfig]) -> ShardWork:
        """Grades a shard's answers. Raises UserError where the grader itself fails: that is no wrong answer."""
        GRADERS.get(context.config.grader, "grader")
        answers, reference = context.artifact("answers"), _References(context)

        def work(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            for batch in answers.batches("answers", ["uuid", "finish_reason", "text"], shard):
                rows = batch.to_pylist()
                for start in range(0, max(len(rows), 1), _BATCH):
                    part = rows[start : start + _BATCH]
                    verdicts = [_verdict(row, reference.of(row["uuid"]), context) for row in part]
                    content = pa.Table.from_pylist([vars(verdict) for verdict in verdicts], VERDICTS)
                    yield {"answers": content}

        return work

    def summarize(self, context: StepContext[GradeConfig]) -> dict[str, Any]:
        """Accuracy by temperature with standard errors, and why answers weren't right."""
        answers, reasons = context.artifact("answers"), Counter[str]()
        columns = ["uuid", "domain", "temperature", "finish_reason", "tokens", "problem"]
        parts = []
        for shard, verdicts in enumerate(context.output.tables(self.table, ["correct", "extracted", "reason"])):
            table = answers.read("answers", columns, shard)
            for name in verdicts.column_names:
                table = table.append_column(name, verdicts[name])
            reasons.update(verdicts["reason"].to_pylist())
            parts.append(table)
        measured = measure(pa.concat_tables(parts))
        problems = answers.manifest["counts"]["problems"]
        counts = {"problems": problems, "answers": reasons.total()}
        return {"counts": counts, "reasons": dict(reasons.most_common()), "measures": measured}

    def shards(self, config: GradeConfig, inputs: InputEstimates) -> int:
        """The answers'."""
        return inputs.shards("answers")

    def cost(self, config: GradeConfig, inputs: InputEstimates) -> Cost:
        """Nothing that counts."""
        return Cost()


class _References:
    """References by uuid, those of the last problems in memory."""

    def __init__(self, context: StepContext[GradeConfig]) -> None:
        prompts = context.artifact("prompts")
        self._reader = prompts.reader("prompts", 0, ["answer"])
        self._rows = {row["uuid"]: number for number, row in enumerate(prompts.rows("prompts", ["uuid"]))}
        self.of = lru_cache(maxsize=4)(self._read)

    def _read(self, uuid: str) -> str:
        number = self._rows[uuid]
        (batch,) = self._reader.batches(number, number + 1)
        reference: str = batch["answer"][0].as_py()
        return reference


def _verdict(row: Mapping[str, Any], reference: str, context: StepContext[GradeConfig]) -> Verdict:
    verdict = grade(row["text"], reference, context.config.grader)
    if verdict.correct is None:
        raise UserError(
            f"{context.name}: the grader {context.config.grader} failed ({verdict.detail}) at an answer to {row['uuid']}; run "
            "again to go on from here"
        )
    if not verdict.correct and row["finish_reason"] == "length":
        return Verdict(False, verdict.extracted, TRUNCATED, verdict.detail or verdict.reason)
    return verdict
