"""Step `score`: the student's log-probability of each of its own tokens of a teacher's response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from dasd_megatron.config.models import ModelConfig
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineStepKind, EngineWork, open_engine
from dasd_megatron.steps.cost_estimate import SCORED, Cost, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import ShardWork, StepContext


class ScoreConfig(EngineStepConfig):
    """Config of a step `score`."""

    model: ModelConfig


class ScoreStep(EngineStepKind[ScoreConfig]):
    """Reads filtered `responses`, and runs `model`; each shard gives the column `student_logprobs` of one."""

    name = "score"
    command = "score"
    extends: ClassVar[Mapping[str, str]] = {"responses": "responses"}

    def shard_count(self, context: StepContext[ScoreConfig]) -> int:
        """As many as of responses."""
        return len(context.artifact("responses").shards("responses"))

    def open(self, context: StepContext[ScoreConfig]) -> ShardWork:
        """Loads the engine; scores a shard."""
        responses = context.artifact("responses")
        engine = open_engine(context)

        def score(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            content = responses.read("responses", ["student_prompt_ids", "student_token_ids"], shard)
            prompts = content["student_prompt_ids"].to_pylist()
            tokens = content["student_token_ids"].to_pylist()
            scores = engine.score([prompt + response for prompt, response in zip(prompts, tokens, strict=True)])
            own = [row[-len(response) :] for row, response in zip(scores, tokens, strict=True)]
            yield {self.table: pa.table({"student_logprobs": pa.array(own, pa.list_(pa.float32()))})}

        return score

    def summarize(self, context: StepContext[ScoreConfig]) -> dict[str, Any]:
        """Responses."""
        return {"counts": {"responses": context.artifact("responses").row_count("responses")}}

    def cost(self, config: ScoreConfig, inputs: InputEstimates) -> Cost:
        """The student's log-probabilities of every response."""
        return pass_through_cost(inputs, inputs.own_documents().bytes(SCORED))

    def work(self, config: ScoreConfig, inputs: InputEstimates) -> EngineWork:
        """A forward pass over every response."""
        return EngineWork(scored=inputs.documents("responses"))
