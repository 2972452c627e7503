"""Step `answer`: the student answers selected prompts under a cap relative to the teacher's length (paper, section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.sampling.engine import Request, open_engine, sample_seed
from dasd_megatron.sampling.sample import count_responses, open_tokenizer, response_table
from dasd_megatron.step import StepContext


class AnswerStep:
    """See ShardedStep; a shard is `prompts_per_shard` prompts."""

    table = "responses"

    def shard_count(self, context: StepContext) -> int:
        """See ShardedStep."""
        size: int = context.config["prompts_per_shard"]
        return -(-len(_prompts(context)) // size)

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """See ShardedStep."""
        config = context.config
        temperature, length_cap = config["mixed_policy"]["temperature"], config["mixed_policy"]["length_cap"]
        tokenizer = open_tokenizer(context, "model", config["model"])
        prompts = _prompts(context)
        engine = open_engine(context)

        def answer(shard: int) -> Mapping[str, pa.Table]:
            size = config["prompts_per_shard"]
            rows, requests = [], []
            for prompt in prompts[shard * size : (shard + 1) * size]:
                cap = math.ceil(length_cap * len(prompt.pop("student_token_ids")))
                seed = sample_seed(config["seed"], "answer", prompt["uuid"])
                requests.append(Request(tokenizer.prompt_ids(prompt["input"]), seed, cap))
                rows.append({**prompt, "temperature": temperature})
            samples = engine.generate(requests, temperature, 1.0, tokenizer.stop_ids)
            return {self.table: response_table(rows, requests, samples, tokenizer)}

        return answer

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """See ShardedStep."""
        return count_responses(context, self.table)


def _prompts(context: StepContext) -> list[dict[str, Any]]:
    """One row a prompt: its first selected response gives the teacher's length."""
    columns = ["uuid", "sample_index", "input", "domain", "answer", "student_token_ids"]
    first: dict[str, dict[str, Any]] = {}
    for row in context.artifact("responses").rows("responses", columns):
        first.setdefault(row["uuid"], row)
    seed = context.config["seed"]
    order = sorted(first.values(), key=lambda row: sample_seed(seed, "answer", row["uuid"]))
    return order[: context.config["mixed_policy"]["prompts"]]
