"""Step `sample`: several responses of a model to each prompt, at one temperature, as token ids with log-probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dasd_megatron.config.base import Count, ExecutionOnly, Positive, Temperature
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.sampling import SamplingConfig
from dasd_megatron.sampling.asked_prompts import asked_prompts
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.responses import count_responses
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems, response_items
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import SAMPLED, Cost, Documents, InputEstimates, Unknown, responses_of
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.tokenizer import open_tokenizer


class SampleConfig(EngineStepConfig):
    """Config of a step `sample`."""

    model: ModelConfig
    sampling: SamplingConfig
    temperature: Temperature
    seed: int
    limit: Count | None = None
    # For a dry run: mean length of a response. None: what the recipe expects of all.
    expected_response_tokens: ExecutionOnly[Positive | None] = None


class SampleStep(SamplingStepKind[SampleConfig]):
    """Reads `prompts`, and runs `model`; a shard is `prompts_per_shard` prompts."""

    name = "sample"
    command = "generate"

    def shard_count(self, context: StepContext[SampleConfig]) -> int:
        """Shards of the prompts that are asked."""
        return math.ceil(len(asked_prompts(context, context.config.limit)) / context.config.sampling.prompts_per_shard)

    def load(self, context: StepContext[SampleConfig]) -> SamplingWork[Request, Sample]:
        """Loads the engine; asks for a shard's responses."""
        config, sampling = context.config, context.config.sampling
        tokenizer = open_tokenizer(context.inputs["model"], config.model)
        prompts, size = asked_prompts(context, context.config.limit), sampling.prompts_per_shard

        def items(shard: int) -> ShardItems[Request, Sample]:
            rows, requests = [], []
            for prompt in prompts[shard * size : (shard + 1) * size]:
                prompt_ids = tokenizer.prompt_ids(prompt["input"])
                for index in range(sampling.responses_per_prompt):
                    requests.append(
                        Request(
                            prompt_ids,
                            seed=sample_seed(config.seed, config.temperature, prompt["uuid"], index),
                            max_tokens=sampling.max_tokens,
                            temperature=config.temperature,
                            top_p=sampling.top_p,
                            stop_ids=tokenizer.stop_ids,
                        )
                    )
                    rows.append({**prompt, "sample_index": index, "temperature": config.temperature})
            return response_items(rows, requests, tokenizer)

        engine = open_engine(context)
        return SamplingWork(engine.generate, engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[SampleConfig]) -> dict[str, Any]:
        """Responses, tokens, and how many were truncated."""
        return count_responses(context.output, self.table)

    def documents(self, config: SampleConfig, inputs: InputEstimates) -> Documents:
        """Every candidate of every prompt."""
        if isinstance(config.limit, dict):
            prompts = float(sum(config.limit.values()))
        else:
            try:
                prompts = inputs.prompts("prompts")
            except Unknown:
                if config.limit is None:
                    raise
                prompts = config.limit
            prompts = min(prompts, config.limit or prompts)
        count = prompts * config.sampling.responses_per_prompt
        made = responses_of(prompts, count, config.sampling.max_tokens, inputs.expected)
        return replace(made, response=min(config.expected_response_tokens or made.response, config.sampling.max_tokens))

    def shards(self, config: SampleConfig, inputs: InputEstimates) -> int:
        """Shards of the prompts that are asked."""
        return math.ceil(inputs.own_documents().prompts / config.sampling.prompts_per_shard)

    def cost(self, config: SampleConfig, inputs: InputEstimates) -> Cost:
        """New tokens: a response each."""
        return sampled_cost(inputs.own_documents())

    def work(self, config: SampleConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every response."""
        return EngineWork(decoded=inputs.own_documents())


def sampled_cost(made: Documents) -> Cost:
    """Of new responses."""
    read, written = made.count * (made.prompt + made.prefix), made.count * made.response
    return Cost(made.count, "responses", read, written, samples=True, bytes=made.bytes(SAMPLED))
