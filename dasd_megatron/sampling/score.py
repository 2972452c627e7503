"""Step `score`: what the student makes of each of its own tokens of a teacher's response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dasd_megatron.artifacts.columns import lists
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineStepKind, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import TokenScores
from dasd_megatron.steps.cost_estimate import SCORED, Cost, InputEstimates, pass_through_cost
from dasd_megatron.steps.step import ShardByShardKind, ShardWork, StepContext


class ScoreConfig(EngineStepConfig):
    """Config of a step `score`."""

    model: ModelConfig
    # Brier scores, for the selection scores that need them.
    brier: bool = False


# Of a token's rank; one beyond counts as this.
MAX_RANK = 255
SCORES = pa.schema(
    [
        ("student_logprobs", pa.list_(pa.float32())),
        ("student_ranks", pa.list_(pa.uint8())),  # 1 is the likeliest token
        ("student_brier", pa.float32()),  # mean over all tokens; null where it wasn't computed
    ]
)


class ScoreStep(ShardByShardKind[ScoreConfig], EngineStepKind[ScoreConfig]):
    """Reads filtered `responses`, and runs `model`; each shard gives the columns SCORES of one."""

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
            for batch in responses.batches("responses", ["student_prompt_ids", "student_token_ids"], shard):
                prompts, tokens = lists(batch, "student_prompt_ids"), list(lists(batch, "student_token_ids"))
                sequences = [np.concatenate(pair).tolist() for pair in zip(prompts, tokens, strict=True)]
                scored = engine.score(sequences, context.config.brier)
                rows = [_row(scores, len(response)) for scores, response in zip(scored, tokens, strict=True)]
                yield {self.table: pa.Table.from_pylist(rows, SCORES)}

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


def _row(scores: TokenScores, count: int) -> dict[str, Any]:
    """Of the last `count` tokens: the response."""
    return {
        "student_logprobs": scores.logprobs[-count:],
        "student_ranks": np.minimum(scores.ranks[-count:], MAX_RANK).astype(np.uint8),
        "student_brier": None if scores.brier is None else float(np.mean(scores.brier[-count:])),
    }
