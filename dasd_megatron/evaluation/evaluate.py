"""Step `evaluate`: one model on held-out problems: accuracy, greedy and avg@k, and alignment with the teacher.

Alignment is KL(teacher || model) in nats a response, estimated over the teacher's own samples: the teacher's log-probability
of a response less the model's, over the same text. It needs no shared vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from dasd_megatron.config.evaluation import EvaluationConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.grading.registry import is_right
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
        ("correct", pa.bool_()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("text", pa.string()),
    ]
)
ALIGNMENT = pa.schema([("uuid", pa.string()), ("teacher_logprob", pa.float64()), ("model_logprob", pa.float64())])
GREEDY = 0.0


class EvaluateConfig(EngineStepConfig):
    """Config of a step `evaluate`."""

    model: ModelConfig
    teacher: ModelConfig
    # Whether the model is the teacher, whose own tokens need no translation.
    is_teacher: bool
    evaluation: EvaluationConfig
    seed: int


class EvaluateStep(SamplingStepKind[EvaluateConfig]):
    """Reads `prompts` and, if the teacher is measured, its responses to them, `reference`, and runs `model`.

    A shard is `problems_per_shard` problems and the reference responses to the same problems.
    """

    name = "evaluate"
    command = "evaluate"
    table = "answers"
    schema = ANSWERS

    def shard_count(self, context: StepContext[EvaluateConfig]) -> int:
        """Shards of the problems."""
        return math.ceil(len(_problems(context)) / context.config.evaluation.problems_per_shard)

    def load(self, context: StepContext[EvaluateConfig]) -> SamplingWork[Request, Sample]:
        """Loads the engine; scores a shard's reference responses, and asks for its answers."""
        size = context.config.evaluation.problems_per_shard
        problems, reference = _problems(context), context.artifact("reference") if _has_reference(context) else None
        evaluator = Evaluator(context)

        def items(shard: int) -> ShardItems[Request, Sample]:
            responses: list[dict[str, Any]] = []
            if reference is not None and shard < len(reference.shards("responses")):
                responses = reference.read("responses", shard=shard).to_pylist()
            asked = evaluator.questions(problems[shard * size : (shard + 1) * size])
            return ShardItems(
                [question.request for question in asked],
                lambda numbers, samples: evaluator.graded([asked[number] for number in numbers], samples),
                {"alignment": evaluator.alignment(responses)},
            )

        return SamplingWork(evaluator.engine.generate, evaluator.engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[EvaluateConfig]) -> dict[str, Any]:
        """Accuracy by way of decoding, and alignment, with standard errors."""
        answers = pa.concat_tables(list(context.output.tables(self.table)))
        accuracy = {}
        for temperature in _temperatures(context.config.evaluation):
            chosen = answers.filter(pc.equal(answers["temperature"], pa.scalar(temperature, pa.float32())))
            by_problem = chosen.group_by("uuid").aggregate([("correct", "mean")])["correct_mean"]
            accuracy[_name(temperature)] = mean_and_error(by_problem.to_numpy())
        counts = {"problems": len(_problems(context)), "answers": len(answers)}
        if not _has_reference(context):
            return {"counts": counts, "accuracy": accuracy}
        aligned = pa.concat_tables(list(context.output.tables("alignment")))
        if not len(aligned):
            raise UserError(
                f"{context.name}: not one of the teacher's responses to held-out problems ended within sampling.max_tokens, so "
                "there is nothing to measure alignment on; raise it"
            )
        difference = np.asarray(aligned["teacher_logprob"]) - np.asarray(aligned["model_logprob"])
        counts["reference"] = len(aligned)
        return {"counts": counts, "accuracy": accuracy, "alignment": mean_and_error(difference)}

    def shards(self, config: EvaluateConfig, inputs: InputEstimates) -> int:
        """Shards of the problems."""
        return math.ceil(inputs.prompts("prompts") / config.evaluation.problems_per_shard)

    def cost(self, config: EvaluateConfig, inputs: InputEstimates) -> Cost:
        """The answers' text."""
        answers, reference = _expected_answers(config, inputs), _reference(config, inputs)
        read = answers.count * answers.prompt + (0.0 if reference is None else reference.tokens)
        written = answers.count * answers.response
        return Cost(answers.count, "answers", read, written, evaluates=True, bytes=written * TEXT)

    def work(self, config: EvaluateConfig, inputs: InputEstimates) -> EngineWork:
        """Decodes every answer, and scores the reference responses."""
        return EngineWork(scored=_reference(config, inputs), decoded=_expected_answers(config, inputs))


def _expected_answers(config: EvaluateConfig, inputs: InputEstimates) -> Documents:
    """One greedy answer to each problem, and the sampled ones."""
    settings, problems = config.evaluation, inputs.prompts("prompts")
    answers = problems * (1 + len(settings.temperatures) * settings.samples)
    return responses_of(problems, answers, settings.max_tokens, inputs.expected)


def _reference(config: EvaluateConfig, inputs: InputEstimates) -> Documents | None:
    """The teacher's responses, where there are any."""
    return inputs.documents("reference") if config.evaluation.teacher else None


@dataclass(frozen=True)
class Question:
    """A problem, asked once."""

    problem: Mapping[str, Any]
    sample_index: int
    request: Request


class Evaluator:
    """A model, loaded, with what it takes to question it."""

    def __init__(self, context: StepContext[EvaluateConfig]) -> None:
        self._config = context.config
        self._tokenizer = open_tokenizer(context.inputs["model"], context.config.model)
        self._format = response_format(context.config.model.response_format, self._tokenizer)
        teacher = open_tokenizer(context.inputs["teacher"], context.config.teacher)
        self._teacher_format = response_format(context.config.teacher.response_format, teacher)
        self.engine: Engine = open_engine(context)

    def questions(self, problems: Sequence[Mapping[str, Any]]) -> list[Question]:
        """Each problem greedily, and sampled."""
        settings, asked = self._config.evaluation, []
        prompts = {problem["uuid"]: self._tokenizer.prompt_ids(problem["input"]) for problem in problems}
        for temperature in _temperatures(settings):
            for problem in problems:
                for index in range(1 if temperature == GREEDY else settings.samples):
                    request = Request(
                        prompts[problem["uuid"]],
                        seed=sample_seed(self._config.seed, "evaluate", temperature, problem["uuid"], index),
                        max_tokens=settings.max_tokens,
                        temperature=temperature,
                        top_p=1.0,
                        stop_ids=self._tokenizer.stop_ids,
                    )
                    asked.append(Question(problem, index, request))
        return asked

    def graded(self, questions: Sequence[Question], samples: Sequence[Sample]) -> pa.Table:
        """Graded answers."""
        rows = []
        for question, sample in zip(questions, samples, strict=True):
            problem, stopped = question.problem, sample.finish_reason == "stop"
            response = self._format.parse(question.request.prompt_ids, [], sample.token_ids, stopped)
            right = stopped and is_right(response.text, problem["answer"], self._config.evaluation.grader)
            rows.append(
                {
                    "uuid": problem["uuid"],
                    "domain": problem["domain"],
                    "temperature": question.request.temperature,
                    "sample_index": question.sample_index,
                    "correct": right,
                    "finish_reason": sample.finish_reason,
                    "tokens": len(sample.token_ids),
                    "text": response.text,
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


def mean_and_error(values: ArrayLike) -> dict[str, float]:
    """Mean over problems and its standard error."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "standard_error": float(error)}


def _has_reference(context: StepContext[EvaluateConfig]) -> bool:
    return context.config.evaluation.teacher


def _problems(context: StepContext[EvaluateConfig]) -> list[dict[str, Any]]:
    problems: list[dict[str, Any]] = context.artifact("prompts").read("prompts").to_pylist()
    return problems


def _temperatures(settings: EvaluationConfig) -> list[float]:
    return [GREEDY, *settings.temperatures]


def _name(temperature: float) -> str:
    return "greedy" if temperature == GREEDY else f"{temperature:g}"
