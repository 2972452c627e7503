"""Step `turns`: student and teacher write responses together, in turns of a few tokens (TESSY, arXiv 2604.14164)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dasd_megatron.config.base import Positive, Temperature
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.sampling import EngineConfig, SamplingConfig
from dasd_megatron.config.stages import TurnsConfig
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork
from dasd_megatron.sampling.engines.engine_process import EngineProcess
from dasd_megatron.sampling.responses import RESPONSES, count_responses
from dasd_megatron.sampling.sample import sampled_cost
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems
from dasd_megatron.sampling.student_rollout import answered_prompts
from dasd_megatron.sampling.turn_boundaries import Boundaries, PredictedBoundaries, SentenceBoundaries, Writer
from dasd_megatron.sampling.turn_writer import Draft, Limits, Party, TurnWriter
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.response_format import response_format, response_tokens
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer

# In the student's tokens. They have no log-probabilities: each was written by one of two models.
TURNS = RESPONSES.remove(RESPONSES.get_field_index("logprobs")).append(
    pa.field("turn_bytes", pa.list_(pa.int32()))  # of the student's turn, the teacher's, the student's, ...
)


class TurnsStepConfig(EngineStepConfig):
    """Config of a step `turns`; see `mixed_policy.turns` in the recipe."""

    model: ModelConfig
    student: ModelConfig
    student_engine: EngineConfig
    sampling: SamplingConfig
    turns: TurnsConfig
    prompts: Positive | None
    temperature: Temperature
    sentence_end: str
    # Of a document: in a pack, and of what an engine takes (None: as much as the model has positions).
    context_length: Positive
    max_length: Positive | None
    seed: int


class TurnsStep(SamplingStepKind[TurnsStepConfig]):
    """Reads `responses` of the stage before, runs `model`, the teacher, and `student`, side by side on the same GPUs; a shard is
    `sampling.prompts_per_shard` prompts."""

    name = "turns"
    command = "generate"
    schema = TURNS

    def shard_count(self, context: StepContext[TurnsStepConfig]) -> int:
        """Shards of the prompts that are asked."""
        return math.ceil(len(_prompts(context)) / context.config.sampling.prompts_per_shard)

    def load(self, context: StepContext[TurnsStepConfig]) -> SamplingWork[dict[str, Any], Draft]:
        """Loads both engines; asks for a shard's responses."""
        prompts, size = _prompts(context), context.config.sampling.prompts_per_shard
        student = _student(context)

        def items(shard: int) -> ShardItems[dict[str, Any], Draft]:
            return ShardItems(
                prompts[shard * size : (shard + 1) * size],
                lambda _, drafts: _table(drafts, student, context.config),
            )

        writer = _writer(context)
        return SamplingWork(writer.generate, writer.tokens_in_flight, items)

    def runs_elsewhere(self, config: TurnsStepConfig) -> bool:
        """Only where both engines do."""
        return config.engine.runs_elsewhere and config.student_engine.runs_elsewhere

    def summarize(self, context: StepContext[TurnsStepConfig]) -> dict[str, Any]:
        """Responses, tokens, how many were truncated, and the teacher's share of the text."""
        teachers, total, turns = 0, 0, 0
        for table in context.output.tables(self.table, ["turn_bytes"]):
            for sizes in table["turn_bytes"].to_pylist():
                teachers, total, turns = teachers + sum(sizes[1::2]), total + sum(sizes), turns + len(sizes)
        share = teachers / max(total, 1)
        print(f"{context.name}: the teacher wrote {share:.0%} of the text, in {turns:,} turns of both", file=sys.stderr)
        facts = count_responses(context.output, self.table)
        return {**facts, "written_by_teacher": round(share, 4), "turns": turns}

    def documents(self, config: TurnsStepConfig, inputs: InputEstimates) -> Documents:
        """A response a prompt, as long as the teacher's."""
        selected = inputs.documents("responses")
        prompts = min(selected.prompts, config.prompts or selected.prompts)
        return replace(selected, prompts=prompts, count=prompts)

    def shards(self, config: TurnsStepConfig, inputs: InputEstimates) -> int:
        """Shards of the prompts that are asked."""
        return math.ceil(inputs.own_documents().prompts / config.sampling.prompts_per_shard)

    def cost(self, config: TurnsStepConfig, inputs: InputEstimates) -> Cost:
        """New tokens: a response each."""
        return sampled_cost(inputs.own_documents())

    def work(self, config: TurnsStepConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every response, as if the teacher wrote all of it; the student's turns take less."""
        return EngineWork(decoded=inputs.own_documents())


def _prompts(context: StepContext[TurnsStepConfig]) -> list[dict[str, Any]]:
    return answered_prompts(context.artifact("responses"), context.config.prompts, context.config.seed)


def _student(context: StepContext[TurnsStepConfig]) -> ChatTokenizer:
    return open_tokenizer(context.inputs["student"], context.config.student)


def _writer(context: StepContext[TurnsStepConfig]) -> TurnWriter:
    config, inputs = context.config, context.inputs
    student, teacher = _student(context), open_tokenizer(inputs["model"], config.model)
    longest = min(config.context_length, config.max_length or config.context_length)
    boundaries: Boundaries = SentenceBoundaries(config.sentence_end)
    if config.turns.boundary == "predictor":
        boundaries = PredictedBoundaries(inputs["student_predictor"], inputs["teacher_predictor"])
    share = config.turns.student_memory
    engines: dict[Writer, EngineProcess] = {
        "student": EngineProcess(inputs["student"], _engine(config.student_engine, share)),
        "teacher": EngineProcess(inputs["model"], _engine(config.engine, 1 - share)),
    }
    return TurnWriter(
        student=Party(student, response_format(config.student.response_format, student), config.turns.student_tokens),
        teacher=Party(teacher, response_format(config.model.response_format, teacher), config.turns.teacher_tokens),
        engines=engines,
        boundaries=boundaries,
        limits=Limits(config.sampling.max_tokens, longest),
        temperature=config.temperature,
        top_p=config.sampling.top_p,
        seed=config.seed,
        most=config.engine.max_batch,
    )


def _engine(config: EngineConfig, share: float) -> EngineConfig:
    """With a share of the memory."""
    return config.model_copy(update={"gpu_memory_utilization": config.gpu_memory_utilization * share})


def _table(drafts: Sequence[Draft], student: ChatTokenizer, config: TurnsStepConfig) -> pa.Table:
    found = response_tokens(student, [(draft.prompt_ids["student"], draft.text) for draft in drafts])
    rows = []
    for draft, (ids, _) in zip(drafts, found, strict=True):
        own = ids if draft.finish_reason == "stop" else ids[:-1]
        rows.append(
            {
                **draft.prompt,
                "temperature": config.temperature,
                "prompt_ids": draft.prompt_ids["student"],
                "prefix_ids": [],
                "token_ids": own,
                "tokens": len(own),
                "finish_reason": draft.finish_reason,
                "max_tokens": config.sampling.max_tokens,
                "text": draft.text,
                "turn_bytes": draft.turn_bytes,
            }
        )
    return pa.Table.from_pylist(rows, TURNS)
