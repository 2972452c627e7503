"""Step `score`: the student's log-probability of each of its own tokens of a teacher's response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.config.models import ModelConfig
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineStepKind, EngineWork, open_engine
from dasd_megatron.steps.cost_estimate import SCORED, Cost, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import StepContext


class ScoreConfig(EngineStepConfig):
    """Config of a step `score`."""

    model: ModelConfig


class ScoreStep(EngineStepKind[ScoreConfig]):
    """Reads filtered `responses`, and runs `model`; each shard gives one with the column `student_logprobs` added."""

    name = "score"
    command = "score"

    def shard_count(self, context: StepContext[ScoreConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[ScoreConfig]) -> Callable[[int], Mapping[str, pa.Table]]:
        """Loads the engine; scores a shard."""
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

    def summarize(self, context: StepContext[ScoreConfig]) -> dict[str, Any]:
        """Responses."""
        return {"counts": {"responses": sum(len(table) for table in context.output.tables(self.table, ["uuid"]))}}

    def cost(self, config: ScoreConfig, inputs: InputEstimates) -> Cost:
        """Every response again, with the student's log-probabilities."""
        return pass_through_cost(inputs, SCORED)

    def work(self, config: ScoreConfig, inputs: InputEstimates) -> EngineWork:
        """A forward pass over every response."""
        return EngineWork(scored=inputs.documents("responses"))
