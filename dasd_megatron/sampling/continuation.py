"""Step `continue`: student answers that ran too long are cut beyond half, and the teacher goes on (paper, section 2.4)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.errors import UserError
from dasd_megatron.evaluation.graders import final_answer, grade
from dasd_megatron.sampling.engine import Request, open_engine, sample_seed
from dasd_megatron.sampling.sample import count_responses, open_tokenizer, response_table
from dasd_megatron.step import StepContext
from dasd_megatron.tokenization.response_format import CLOSE, opening, response_format
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

PASSED_OVER = pa.schema([("uuid", pa.string()), ("reason", pa.string()), ("text", pa.string())])


class ContinueStep:
    """See ShardedStep; each shard of answers gives a shard of continuations and one of answers left as they were."""

    table = "responses"

    def shard_count(self, context: StepContext) -> int:
        """See ShardedStep."""
        return len(context.artifact("answers").shards("responses"))

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """See ShardedStep."""
        config, answers = context.config, context.artifact("answers")
        temperature = config["mixed_policy"]["temperature"]
        teacher = open_tokenizer(context, "model", config["model"])
        student = open_tokenizer(context, "student", config["student"])
        style = response_format(config["model"]["response_format"], teacher)
        engine = open_engine(context)

        def go_on(shard: int) -> Mapping[str, pa.Table]:
            rows, requests, passed_over = [], [], []
            for answer in answers.read_shard("responses", shard).to_pylist():
                reason = _keep_reason(answer, config)
                prefix = cut(answer, student, config) if reason is None else ""
                if not prefix:
                    passed_over.append(
                        {"uuid": answer["uuid"], "reason": reason or "no_prefix", "text": answer["text"]}
                    )
                    continue
                prompt_ids = teacher.prompt_ids(answer["input"])
                prefix_ids = style.prefix_ids(prefix, prompt_ids)
                seed = sample_seed(config["seed"], "continue", answer["uuid"])
                requests.append(Request([*prompt_ids, *prefix_ids], seed, config["sampling"]["max_tokens"]))
                rows.append({**answer, "prefix_ids": prefix_ids, "temperature": temperature})
            top_p = config["sampling"]["top_p"]
            samples = engine.generate(requests, temperature, top_p, teacher.stop_ids) if requests else []
            return {
                "passed_over": pa.Table.from_pylist(passed_over, PASSED_OVER),
                self.table: response_table(rows, requests, samples, teacher),
            }

        return go_on

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """See ShardedStep."""
        facts = count_responses(context, self.table)
        reasons: Counter[str] = Counter()
        for table in context.output.tables("passed_over", ["reason"]):
            reasons.update(table["reason"].to_pylist())
        if not facts["counts"]["responses"]:
            raise UserError(
                f"{context.name}: no student answer was cut off or wrong ({dict(reasons)}), so there is nothing for the "
                "teacher to continue; lower mixed_policy.length_cap, set mixed_policy.keep=truncated_or_wrong, or drop the stage"
            )
        return {**facts, "passed_over": dict(reasons)}


def cut(answer: Mapping[str, Any], student: ChatTokenizer, config: Mapping[str, Any]) -> str:
    """The student's text up to a random token at or beyond `cut_after` of its length, whole characters only.

    An answer that ended its reasoning is cut within it: after `</think>` nothing is left to mend.
    """
    ids = answer["token_ids"][:-1] if answer["finish_reason"] == "stop" else answer["token_ids"]
    reasoning = next(
        (n for n in range(len(ids)) if CLOSE.encode() in student.decode_bytes(ids[max(0, n - 8) : n + 1])), len(ids)
    )
    first = min(int(reasoning * config["mixed_policy"]["cut_after"]) + 1, reasoning)
    chance = random.Random(sample_seed(config["seed"], "cut", answer["uuid"]))
    place = chance.randint(first, max(first, reasoning - 1))
    text = student.decode_bytes(ids[:place]).decode(errors="ignore")
    return opening(student, answer["prompt_ids"]) + text if text else ""


def _keep_reason(answer: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Why an answer is left alone, or None to continue it."""
    if answer["finish_reason"] == "length":
        return None
    if config["mixed_policy"]["keep"] == "truncated":
        return "finished"
    if answer["answer"] is None:
        return "no_reference_answer"
    return "right" if grade(final_answer(answer["text"]), answer["answer"], config["grader"]) else None
