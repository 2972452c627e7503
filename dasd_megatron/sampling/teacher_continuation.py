"""Step `continue`: student answers that ran too long are cut beyond half, and the teacher continues (paper, section 2.4)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.config.base import Positive, Probability, Temperature
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.prompts import Grader
from dasd_megatron.config.sampling import SamplingConfig
from dasd_megatron.grading.registry import grader_of, is_right
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.responses import RESPONSES, count_responses
from dasd_megatron.sampling.sample import sampled_cost
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems, response_items
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates
from dasd_megatron.steps.empty_result import refuse_empty
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.response_format import CLOSE, opening, response_format
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer

# Of an answer, what deciding about it and continuing it takes.
SEEN = [name for name in RESPONSES.names if name not in ("logprobs", "prefix_ids")]
SKIPPED = pa.schema([("uuid", pa.string()), ("reason", pa.string()), ("text", pa.string())])


class ContinueConfig(EngineStepConfig):
    """Config of a step `continue`; see `mixed_policy` in the recipe."""

    model: ModelConfig
    student: ModelConfig
    sampling: SamplingConfig
    cut_after: Probability
    keep: Literal["truncated", "truncated_or_wrong"]
    temperature: Temperature
    # Of the student's answers: how far they run at most.
    length_cap: float
    grader: Grader
    # Of a document: in a pack, and of what an engine takes (None: as much as the model has positions).
    context_length: Positive
    max_length: Positive | None
    seed: int


class ContinueStep(SamplingStepKind[ContinueConfig]):
    """Reads `answers`, runs `model`, the teacher, and knows `student`'s tokenizer; each shard of answers gives a shard of
    continuations and one of answers left as they were."""

    name = "continue"
    command = "generate"

    def shard_count(self, context: StepContext[ContinueConfig]) -> int:
        """As many as of answers."""
        return len(context.artifact("answers").shards("responses"))

    def load(self, context: StepContext[ContinueConfig]) -> SamplingWork[Request, Sample]:
        """Loads the engine; cuts a shard's answers, and asks for their continuations."""
        config, answers = context.config, context.artifact("answers")
        teacher = open_tokenizer(context.inputs["model"], config.model)
        student = open_tokenizer(context.inputs["student"], config.student)
        style = response_format(config.model.response_format, teacher)
        # What the teacher writes beyond could not be trained on. In its tokens; `filter` counts the student's.
        longest = min(config.context_length, config.max_length or config.context_length)

        def items(shard: int) -> ShardItems[Request, Sample]:
            rows, requests, skipped = [], [], []
            for answer in _rows(answers, shard):
                reason = _skip_reason(answer, config)
                prefix = cut(answer, student, teacher, config.cut_after, config.seed) if reason is None else ""
                if not prefix:
                    skipped.append({"uuid": answer["uuid"], "reason": reason or "no_prefix", "text": answer["text"]})
                    continue
                prompt_ids = teacher.prompt_ids(answer["input"])
                prefix_ids = style.prefix_ids(prefix, prompt_ids)
                room = longest - len(prompt_ids) - len(prefix_ids)
                if room < 1:
                    skipped.append({"uuid": answer["uuid"], "reason": "no_room", "text": answer["text"]})
                    continue
                requests.append(
                    Request(
                        [*prompt_ids, *prefix_ids],
                        seed=sample_seed(config.seed, "continue", answer["uuid"]),
                        max_tokens=min(config.sampling.max_tokens, room),
                        temperature=config.temperature,
                        top_p=config.sampling.top_p,
                        stop_ids=teacher.stop_ids,
                    )
                )
                rows.append({**answer, "prefix_ids": prefix_ids, "temperature": config.temperature})
            others = {"skipped": pa.Table.from_pylist(skipped, SKIPPED)}
            return response_items(rows, requests, teacher, others)

        engine = open_engine(context)
        return SamplingWork(engine.generate, engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[ContinueConfig]) -> dict[str, Any]:
        """Continuations, tokens, how many were truncated, and why answers were skipped."""
        facts = count_responses(context.output, self.table)
        reasons: Counter[str] = Counter()
        for table in context.output.tables("skipped", ["reason"]):
            reasons.update(table["reason"].to_pylist())
        if not facts["counts"]["responses"]:
            refuse_empty(
                context.config,
                f"{context.name}: no student answer was truncated or wrong ({dict(reasons)}), so there is nothing for the "
                "teacher to continue; lower mixed_policy.length_cap, set mixed_policy.keep=truncated_or_wrong, or drop the stage",
            )
        return {**facts, "skipped": dict(reasons)}

    def documents(self, config: ContinueConfig, inputs: InputEstimates) -> Documents:
        """The teacher continues from a mean cut of the longest answers, for as long as one of its own responses."""
        teachers = inputs.inputs_of("answers").documents("responses").response
        prefix = (1 + config.cut_after) / 2 * config.length_cap * teachers
        continued = inputs.documents("answers").fewer(inputs.expected.truncated_answers)
        return replace(continued, prefix=prefix, response=min(teachers, config.sampling.max_tokens))

    def shards(self, config: ContinueConfig, inputs: InputEstimates) -> int:
        """As many as of answers."""
        return inputs.shards("answers")

    def cost(self, config: ContinueConfig, inputs: InputEstimates) -> Cost:
        """New tokens: a continuation each."""
        return sampled_cost(inputs.own_documents())

    def work(self, config: ContinueConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every continuation."""
        return EngineWork(decoded=inputs.own_documents())


def cut(answer: Mapping[str, Any], student: ChatTokenizer, teacher: ChatTokenizer, cut_after: float, seed: int) -> str:
    """The student's text up to a random place at or beyond `cut_after` of its tokens where a token of either model begins.

    Elsewhere the teacher would have to go on from half a token, which it never saw in training. An answer that ended its
    reasoning is cut within it: after `</think>` nothing is left to correct. Empty where there is no such place.
    """
    ids = answer["token_ids"][:-1] if answer["finish_reason"] == "stop" else answer["token_ids"]
    data, starts = _valid_utf8(student.decode_bytes(ids)), student.token_bytes.starts(ids)
    reasoning = data.find(CLOSE.encode())
    count = int(np.searchsorted(starts, len(data) if reasoning < 0 else reasoning))
    ((_, teacher_starts),) = teacher.encode_with_spans([data.decode()])
    shared = np.intersect1d(starts[int(count * cut_after) + 1 : count], teacher_starts)
    places = [place for place in shared.tolist() if data[place] & 0xC0 != 0x80]  # whole characters
    if not places:
        return ""
    place = random.Random(sample_seed(seed, "cut", answer["uuid"])).choice(places)
    return opening(student, answer["prompt_ids"]) + data[:place].decode()


def _rows(answers: Artifact, shard: int) -> Iterator[dict[str, Any]]:
    for batch in answers.batches("responses", SEEN, shard):
        yield from numpy_rows(batch)


def _valid_utf8(data: bytes) -> bytes:
    """`data` up to its first byte that is no UTF-8: a truncated answer may end within a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data


def _skip_reason(answer: Mapping[str, Any], config: ContinueConfig) -> str | None:
    """Why an answer is left alone, or None to continue it."""
    if answer["finish_reason"] == "length":
        return None
    if config.keep == "truncated":
        return "finished"
    if answer["answer"] is None:
        return "no_reference_answer"
    grader = grader_of(config.grader, answer["domain"])
    if grader is None:
        return "not_graded"
    return "right" if is_right(answer["text"], answer["answer"], grader) else None
