"""Step `sample`: several responses of a model to each prompt, at one temperature, as token ids with log-probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.errors import UserError
from dasd_megatron.sampling.engine import Request, Sample, open_engine, sample_seed
from dasd_megatron.step import StepContext
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

# What every sampled response carries. Ids and log-probabilities are the truth; text is for people (`filter` parses the ids).
RESPONSES = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("input", pa.string()),
        ("domain", pa.string()),
        ("answer", pa.string()),
        ("temperature", pa.float32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("prefix_ids", pa.list_(pa.int32())),  # of a response begun by another model; else empty
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # nats, at T=1
        ("finish_reason", pa.string()),
        ("max_tokens", pa.int32()),  # the cap under which it was sampled
        ("text", pa.string()),
    ]
)


class SampleStep:
    """See ShardedStep; a shard is `prompts_per_shard` prompts."""

    table = "responses"

    def shard_count(self, context: StepContext) -> int:
        """See ShardedStep."""
        size: int = context.config["sampling"]["prompts_per_shard"]
        return -(-len(_prompts(context)) // size)

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """See ShardedStep."""
        config, sampling = context.config, context.config["sampling"]
        tokenizer = open_tokenizer(context, "model", config["model"])
        prompts = _prompts(context)
        engine = open_engine(context)

        def sample(shard: int) -> Mapping[str, pa.Table]:
            size = sampling["prompts_per_shard"]
            rows, requests = [], []
            for prompt in prompts[shard * size : (shard + 1) * size]:
                prompt_ids = tokenizer.prompt_ids(prompt["input"])
                for index in range(sampling["responses_per_prompt"]):
                    seed = sample_seed(config["seed"], config["temperature"], prompt["uuid"], index)
                    requests.append(Request(prompt_ids, seed, sampling["max_tokens"]))
                    rows.append({**prompt, "sample_index": index, "temperature": config["temperature"]})
            samples = engine.generate(requests, config["temperature"], sampling["top_p"], tokenizer.stop_ids)
            return {self.table: response_table(rows, requests, samples, tokenizer)}

        return sample

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """See ShardedStep."""
        return count_responses(context, self.table)


def response_table(
    rows: list[dict[str, Any]], requests: list[Request], samples: list[Sample], tokenizer: ChatTokenizer
) -> pa.Table:
    """Sampled responses with what they answer; `rows` may give `prefix_ids`, which then are the end of the prompt sent."""
    content = []
    for row, request, sample in zip(rows, requests, samples, strict=True):
        prefix_ids = row.get("prefix_ids", [])
        prompt_ids = list(request.prompt_ids)
        content.append(
            {
                **row,
                "prompt_ids": prompt_ids[: len(prompt_ids) - len(prefix_ids)],
                "prefix_ids": prefix_ids,
                "token_ids": sample.token_ids,
                "logprobs": sample.logprobs,
                "finish_reason": sample.finish_reason,
                "max_tokens": request.max_tokens,
                "text": tokenizer.decode_bytes(sample.token_ids).decode(errors="replace"),
            }
        )
    return pa.Table.from_pylist(content, RESPONSES)


def count_responses(context: StepContext, table: str) -> dict[str, Any]:
    """Responses, tokens and how they ended, from the shards on disk."""
    reasons: Counter[str] = Counter()
    tokens = 0
    for content in context.output.tables(table, ["finish_reason", "token_ids"]):
        reasons.update(content["finish_reason"].to_pylist())
        tokens += len(content["token_ids"].combine_chunks().flatten())
    return {"counts": {"responses": reasons.total(), "tokens": tokens, "cut_off": reasons["length"]}}


def open_tokenizer(context: StepContext, name: str, model: Mapping[str, Any]) -> ChatTokenizer:
    """The tokenizer of the model folder that is the input `name`; `model` is its section of the recipe."""
    return ChatTokenizer(context.inputs[name], model["system_prompt"], model["template_kwargs"])


def _prompts(context: StepContext) -> list[dict[str, Any]]:
    prompts: list[dict[str, Any]] = context.artifact("prompts").read("prompts").to_pylist()
    limit = context.config.get("limit")
    return _of_domains(context.name, prompts, limit) if isinstance(limit, dict) else prompts[:limit]


def _of_domains(step: str, prompts: list[dict[str, Any]], wanted: Mapping[str, int]) -> list[dict[str, Any]]:
    """The first so many prompts of each domain, in their order. Raises UserError where there are too few."""
    found = Counter(prompt["domain"] for prompt in prompts)
    for domain, count in wanted.items():
        if found[domain] < count:
            there = ", ".join(f"{name or 'none'} {number}" for name, number in found.most_common())
            raise UserError(
                f"{step}: the stage's prompts.{domain}={count}, but prompts.train has {found[domain]} of that domain (it has: "
                f"{there}); lower the number, or mend the name"
            )
    left, chosen = dict(wanted), []
    for prompt in prompts:
        if left.get(prompt["domain"], 0):
            left[prompt["domain"]] -= 1
            chosen.append(prompt)
    return chosen
