"""Step `score`: the student's log-probability of each of its own tokens of a teacher's response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.sampling.engine import open_engine
from dasd_megatron.step import StepContext


class ScoreStep:
    """See ShardedStep; a shard of filtered responses gives a shard with the column `student_logprobs` added."""

    table = "responses"

    def shard_count(self, context: StepContext) -> int:
        """See ShardedStep."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """See ShardedStep."""
        responses = context.artifact("responses")
        engine = open_engine(context)

        def score(shard: int) -> Mapping[str, pa.Table]:
            content = responses.read_shard("responses", shard)
            prompts = content["student_prompt_ids"].to_pylist()
            tokens = content["student_token_ids"].to_pylist()
            scores = engine.score([prompt + response for prompt, response in zip(prompts, tokens, strict=True)])
            own = [row[-len(response) :] for row, response in zip(scores, tokens, strict=True)]
            return {self.table: content.append_column("student_logprobs", pa.array(own, pa.list_(pa.float32())))}

        return score

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """See ShardedStep."""
        return {"counts": {"responses": sum(len(table) for table in context.output.tables(self.table, ["uuid"]))}}
