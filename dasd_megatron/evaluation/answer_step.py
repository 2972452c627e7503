"""Step `answer`: a model's answers to the problems of a benchmark, and its alignment with the teacher there. Nothing is graded.

Alignment is KL(teacher || model) in nats a response, estimated over the teacher's own samples: the teacher's log-probability
of a response less the model's, over the same text. It needs no shared vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.config.base import Positive, Temperature
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.evaluation.measures import mean_and_error
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import Engine, Request, Sample
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import TEXT, Cost, Documents, InputEstimates, responses_of
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.response_format import response_format, response_tokens
from dasd_megatron.tokenization.tokenizer import open_tokenizer
from dasd_megatron.utils.errors import UserError

ANSWERS = pa.schema(
    [
        ("uuid", pa.string()),
        ("domain", pa.string()),
        ("temperature", pa.float32()),
        ("sample_index", pa.int32()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("text", pa.string()),  # canonical
        ("problem", pa.string()),  # why it isn't what the model's response_format says; null where it is
    ]
)
ALIGNMENT = pa.schema([("uuid", pa.string()), ("teacher_logprob", pa.float64()), ("model_logprob", pa.float64())])
GREEDY = 0.0


class AnswerConfig(EngineStepConfig):
    """Config of a step `answer`."""

    model: ModelConfig
    teacher: ModelConfig
    # Whether the model is the teacher, whose own tokens need no translation; and whether it is measured how far the model is
    # from the teacher.
    is_teacher: bool
    aligned: bool
    temperatures: list[Temperature]
    samples: Positive
    max_tokens: Positive
    answers_per_shard: Positive
    seed: int


class AnswerStep(SamplingStepKind[AnswerConfig]):
    """Reads `prompts` and, if the teacher is measured, its responses to them, `reference`, and runs `model`.

    A shard is `answers_per_shard` answers, to as many problems as that takes.
    """

    name = "answer"
    command = "evaluate"
    table = "answers"
    schema = ANSWERS

    def shard_count(self, context: StepContext[AnswerConfig]) -> int:
        """Shards of the answers."""
        return _shards(context.config, context.artifact("prompts").row_count("prompts"))

    def load(self, context: StepContext[AnswerConfig]) -> SamplingWork[Request, Sample]:
        """Loads the engine; scores a shard's reference responses, and asks for its answers."""
        size, answerer = context.config.answers_per_shard, _Answerer(context)
        reference = context.artifact("reference") if context.config.aligned else None
        questions = answerer.questions()
        longest, asked_for = answerer.engine.max_length, context.config.max_tokens
        if asked_for >= longest:  # never refused, nor given less than there is room for: open-instruct#1854
            print(
                f"{context.name}: prompt and answer have {longest:,} tokens together at most, so the model is made or the engine "
                f"set; max_tokens={asked_for:,} isn't reached, and longer answers are truncated",
                file=sys.stderr,
            )

        def items(shard: int) -> ShardItems[Request, Sample]:
            responses: list[dict[str, Any]] = []
            if reference is not None and shard < len(reference.shards("responses")):
                responses = reference.read("responses", shard=shard).to_pylist()
            asked = [answerer.asked(*question) for question in questions[shard * size : (shard + 1) * size]]
            return ShardItems(
                [question.request for question in asked],
                lambda numbers, samples: answerer.answers([asked[number] for number in numbers], samples),
                {"alignment": answerer.alignment(responses)},
            )

        return SamplingWork(answerer.engine.generate, answerer.engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[AnswerConfig]) -> dict[str, Any]:
        """How many answers there are, how many were cut off, and how far the model is from the teacher."""
        answers, tokens, truncated = 0, 0, 0
        for table in context.output.tables(self.table, ["tokens", "finish_reason"]):
            answers += len(table)
            tokens += pc.sum(table["tokens"]).as_py() or 0
            truncated += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0
        problems = context.artifact("prompts").row_count("prompts")
        counts = {"problems": problems, "answers": answers, "tokens": tokens, "truncated": truncated}
        if not context.config.aligned:
            return {"counts": counts}
        aligned = pa.concat_tables(list(context.output.tables("alignment")))
        if not len(aligned):
            raise UserError(
                f"{context.name}: not one of the teacher's responses to these problems ended within sampling.max_tokens, so "
                "there is nothing to measure alignment on; raise it"
            )
        difference = np.asarray(aligned["teacher_logprob"]) - np.asarray(aligned["model_logprob"])
        counts["reference"] = len(aligned)
        return {"counts": counts, "alignment": mean_and_error(difference)}

    def shards(self, config: AnswerConfig, inputs: InputEstimates) -> int:
        """Shards of the answers."""
        return _shards(config, inputs.prompts("prompts"))

    def cost(self, config: AnswerConfig, inputs: InputEstimates) -> Cost:
        """The answers' text."""
        answers, reference = _expected_answers(config, inputs), _reference(config, inputs)
        read = answers.count * answers.prompt + (0.0 if reference is None else reference.tokens)
        written = answers.count * answers.response
        return Cost(answers.count, "answers", read, written, evaluates=True, bytes=written * TEXT)

    def work(self, config: AnswerConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every answer, and scores the reference responses."""
        return EngineWork(scored=_reference(config, inputs), decoded=_expected_answers(config, inputs))


def _answers_a_problem(config: AnswerConfig) -> int:
    return sum(1 if temperature == GREEDY else config.samples for temperature in config.temperatures)


def _shards(config: AnswerConfig, problems: float) -> int:
    return math.ceil(problems * _answers_a_problem(config) / config.answers_per_shard)


def _expected_answers(config: AnswerConfig, inputs: InputEstimates) -> Documents:
    """All of them."""
    problems = inputs.prompts("prompts")
    return responses_of(problems, problems * _answers_a_problem(config), config.max_tokens, inputs.expected)


def _reference(config: AnswerConfig, inputs: InputEstimates) -> Documents | None:
    """The teacher's responses, where there are any."""
    return inputs.documents("reference") if config.aligned else None


@dataclass(frozen=True)
class _Question:
    """A problem, asked once.

    Attributes:
        start_ids: what the answer begins with; the end of the request's prompt.
    """

    problem: Mapping[str, Any]
    sample_index: int
    request: Request
    start_ids: list[int]


class _Answerer:
    """A model, loaded, with what it takes to question it."""

    def __init__(self, context: StepContext[AnswerConfig]) -> None:
        self._config = context.config
        columns = ["uuid", "input", "domain", "answer_start"]
        self._problems = context.artifact("prompts").read("prompts", columns).to_pylist()
        self._tokenizer = open_tokenizer(context.inputs["model"], context.config.model)
        self._format = response_format(context.config.model.response_format, self._tokenizer)
        teacher = open_tokenizer(context.inputs["teacher"], context.config.teacher)
        self._teacher_format = response_format(context.config.teacher.response_format, teacher)
        self.engine: Engine = open_engine(context)

    def questions(self) -> list[tuple[Mapping[str, Any], float, int]]:
        """Problem, temperature and number of each answer, in their order: a problem's stand together, and share its prompt."""
        config = self._config
        return [
            (problem, temperature, index)
            for temperature in config.temperatures
            for problem in self._problems
            for index in range(1 if temperature == GREEDY else config.samples)
        ]

    def asked(self, problem: Mapping[str, Any], temperature: float, index: int) -> _Question:
        """The request for an answer; its seed depends on nothing but what it is."""
        prompt_ids = self._tokenizer.prompt_ids(problem["input"])
        start_ids = self._format.prefix_ids(problem["answer_start"], prompt_ids) if problem["answer_start"] else []
        request = Request(
            [*prompt_ids, *start_ids],
            seed=sample_seed(self._config.seed, "evaluate", temperature, problem["uuid"], index),
            max_tokens=self._config.max_tokens,
            temperature=temperature,
            top_p=1.0,
            stop_ids=self._tokenizer.stop_ids,
        )
        return _Question(problem, index, request, start_ids)

    def answers(self, questions: Sequence[_Question], samples: Sequence[Sample]) -> pa.Table:
        """Rows of the table."""
        rows = []
        for question, sample in zip(questions, samples, strict=True):
            stopped = sample.finish_reason == "stop"
            prompt_ids = question.request.prompt_ids[: len(question.request.prompt_ids) - len(question.start_ids)]
            response = self._format.parse(prompt_ids, question.start_ids, sample.token_ids, stopped)
            rows.append(
                {
                    "uuid": question.problem["uuid"],
                    "domain": question.problem["domain"],
                    "temperature": question.request.temperature,
                    "sample_index": question.sample_index,
                    "finish_reason": sample.finish_reason,
                    "tokens": len(sample.token_ids),
                    "text": response.text,
                    "problem": response.problem,
                }
            )
        return pa.Table.from_pylist(rows, ANSWERS)

    def alignment(self, responses: list[dict[str, Any]]) -> pa.Table:
        """Log-probabilities of the teacher's finished responses, where they fit, under the teacher and under this model."""
        rows, sequences, lengths = [], [], []
        for row in responses:
            if row["finish_reason"] != "stop":
                continue
            prompt, tokens = row["prompt_ids"], row["token_ids"]
            if not self._config.is_teacher:
                text = self._teacher_format.parse(prompt, row["prefix_ids"], tokens, stopped=True).text
                prompt, tokens = self._in_own_tokens(row["input"], text)
            if len(prompt) + len(tokens) >= self.engine.max_length:
                continue
            rows.append({"uuid": row["uuid"], "teacher_logprob": float(np.sum(row["logprobs"], dtype=np.float64))})
            sequences.append([*prompt, *tokens])
            lengths.append(len(tokens))
        scores = self.engine.score(sequences) if sequences else []
        for row, score, length in zip(rows, scores, lengths, strict=True):
            row["model_logprob"] = float(np.sum(score.logprobs[-length:], dtype=np.float64))
        return pa.Table.from_pylist(rows, ALIGNMENT)

    def _in_own_tokens(self, question: str, text: str) -> tuple[list[int], list[int]]:
        prompt_ids = self._tokenizer.prompt_ids(question)
        return prompt_ids, response_tokens(self._tokenizer, [(prompt_ids, text)])[0][0].tolist()
