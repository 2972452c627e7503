"""Step `rollout`: the student answers selected prompts under a cap relative to the teacher's length (paper, section 2.4)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.base import Positive, Temperature
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.responses import count_responses
from dasd_megatron.sampling.sample import sampled_cost
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems, response_items
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.tokenizer import open_tokenizer


class RolloutConfig(EngineStepConfig):
    """Config of a step `rollout`; see `mixed_policy` in the recipe."""

    model: ModelConfig
    prompts: Positive | None
    temperature: Temperature
    length_cap: float
    prompts_per_shard: Positive
    seed: int


class RolloutStep(SamplingStepKind[RolloutConfig]):
    """Reads `responses` of the stage before, and runs `model`, the student; a shard is `prompts_per_shard` prompts."""

    name = "rollout"
    command = "generate"

    def shard_count(self, context: StepContext[RolloutConfig]) -> int:
        """Shards of the prompts that are asked."""
        prompts = answered_prompts(context.artifact("responses"), context.config.prompts, context.config.seed)
        return math.ceil(len(prompts) / context.config.prompts_per_shard)

    def load(self, context: StepContext[RolloutConfig]) -> SamplingWork[Request, Sample]:
        """Loads the engine; asks for a shard's answers."""
        config, size = context.config, context.config.prompts_per_shard
        tokenizer = open_tokenizer(context.inputs["model"], config.model)
        prompts = answered_prompts(context.artifact("responses"), config.prompts, config.seed)

        def items(shard: int) -> ShardItems[Request, Sample]:
            rows, requests = [], []
            for prompt in prompts[shard * size : (shard + 1) * size]:
                requests.append(
                    Request(
                        tokenizer.prompt_ids(prompt["input"]),
                        seed=sample_seed(config.seed, "answer", prompt["uuid"]),
                        max_tokens=math.ceil(config.length_cap * prompt["student_tokens"]),
                        temperature=config.temperature,
                        top_p=1.0,
                        stop_ids=tokenizer.stop_ids,
                    )
                )
                rows.append({**prompt, "temperature": config.temperature})
            return response_items(rows, requests, tokenizer)

        engine = open_engine(context)
        return SamplingWork(engine.generate, engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[RolloutConfig]) -> dict[str, Any]:
        """Answers, tokens, how many were truncated, and the cap."""
        return {**count_responses(context.output, self.table), "length_cap": context.config.length_cap}

    def documents(self, config: RolloutConfig, inputs: InputEstimates) -> Documents:
        """An answer a prompt, as long as the cap or, where it ends by itself, as the teacher's."""
        selected = inputs.documents("responses")
        prompts = min(selected.prompts, config.prompts or selected.prompts)
        truncated = inputs.expected.truncated_answers
        mean = truncated * config.length_cap + (1 - truncated) * min(1.0, config.length_cap)
        return replace(selected, prompts=prompts, count=prompts, response=mean * selected.response)

    def shards(self, config: RolloutConfig, inputs: InputEstimates) -> int:
        """Shards of the prompts that are asked."""
        return math.ceil(inputs.own_documents().prompts / config.prompts_per_shard)

    def cost(self, config: RolloutConfig, inputs: InputEstimates) -> Cost:
        """New tokens: an answer each."""
        return sampled_cost(inputs.own_documents())

    def work(self, config: RolloutConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every answer."""
        return EngineWork(decoded=inputs.own_documents())


def answered_prompts(responses: Artifact, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Prompts of selected responses in random order, one row each: its first response gives the teacher's length."""
    columns = ["uuid", "sample_index", "input", "domain", "answer", "student_tokens"]
    first: dict[str, dict[str, Any]] = {}
    for row in responses.rows("responses", columns):
        first.setdefault(row["uuid"], row)
    order = sorted(first.values(), key=lambda row: sample_seed(seed, "answer", row["uuid"]))
    return order[:limit]
