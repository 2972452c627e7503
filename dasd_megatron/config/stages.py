"""The stages of a distillation and what they learn from: `stages`, `mixed_policy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from dasd_megatron.config.base import (
    Config,
    Count,
    ExecutionOnly,
    Name,
    Overrides,
    Positive,
    Probability,
    Temperature,
    overrides_of,
)
from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.config.prompts import PromptSource
from dasd_megatron.config.responses import ResponseSource
from dasd_megatron.config.training import TrainingConfig

if TYPE_CHECKING:
    SelectionOverrides = Overrides
    TrainingOverrides = Overrides
else:
    SelectionOverrides = overrides_of(SelectionConfig)
    TrainingOverrides = overrides_of(TrainingConfig)


class _Stage(Config):
    name: Name
    """Part of the names of the stage's steps."""

    training: TrainingOverrides = TrainingOverrides()
    """Keys of `training` that differ in this stage."""


class SampledStageConfig(_Stage):
    """A stage that learns from the teacher's own responses. Starts from the stage before it, the first one from the student."""

    kind: Literal["sampled"]
    """Learns from responses of the teacher."""

    temperature: Temperature
    """At which the teacher is sampled for this stage's data; of `responses`, at which it was."""

    source: PromptSource | None = None
    """This stage's own problems; those of `prompts.train` by default."""

    responses: ResponseSource | None = None
    """Responses that exist already, with their problems; by default the teacher is sampled."""

    prompts: Count | None = None
    """Prompts that the stage's data is made from, in their order: at most this number in all, or exactly these numbers of each
    domain, `{math: 45_400, code: 20_100}`; all by default."""

    expected_response_tokens: Positive | None = None
    """Mean length of this stage's responses, as a dry run assumes; by default `expected.response_tokens`. Shapes no result."""

    selection: SelectionOverrides = SelectionOverrides()
    """Keys of `selection` that differ in this stage: `{total: 105_000}`, say."""

    @model_validator(mode="after")
    def _one_origin(self) -> SampledStageConfig:
        if self.source is not None and self.responses is not None:
            raise ValueError("give source or responses, not both: responses come with their problems")
        return self


class MixedPolicyStageConfig(_Stage):
    """A stage that learns from answers that the student began and the teacher finished; `mixed_policy` says how."""

    kind: Literal["mixed_policy"]
    """Learns from answers that the student began and the teacher finished."""


StageConfig = Annotated[SampledStageConfig | MixedPolicyStageConfig, Field(discriminator="kind")]


class TurnsConfig(Config):
    """Teacher and student write a response in turns (TESSY, arXiv 2604.14164): the student what is style, the teacher what is
    capability, so that the text stays close to what the student itself would write. The student writes the whole answer."""

    boundary: Literal["sentence", "predictor"] = "sentence"
    """Where one stops and the other goes on. `predictor`: where a model that labels tokens finds the other's kind, TESSY's way.
    `sentence`, ours, needs no model: the student opens a sentence, the teacher writes it to its end; one that is shorter than
    `student_tokens` is the student's, and the next the teacher's."""

    student_tokens: Positive = 10
    """Most tokens that the student writes at a time (TESSY: 20; for code 5)."""

    teacher_tokens: Positive = 20
    """Most tokens that the teacher writes at a time (TESSY: 20; for code 10)."""

    student_predictor: Path | None = None
    """Folder of the model that labels tokens where the student writes: a token classifier with labels 0, capability, and 1,
    style, as TESSY's authors publish them. Needed for `boundary: predictor`."""

    teacher_predictor: Path | None = None
    """The same where the teacher writes."""

    student_memory: ExecutionOnly[float] = Field(0.25, gt=0, lt=1)
    """Of the memory that `engine.gpu_memory_utilization` grants, the student's share: both models are on the same GPUs."""

    @model_validator(mode="after")
    def _has_predictors(self) -> TurnsConfig:
        if self.boundary == "predictor" and None in (self.student_predictor, self.teacher_predictor):
            raise ValueError(
                "boundary=predictor needs student_predictor and teacher_predictor: folders of token classifiers"
            )
        return self


class MixedPolicyConfig(Config):
    """Teacher and student write together: the student begins, the teacher finishes (paper, section 2.4); or both take turns."""

    method: Literal["continue", "turns"] = "continue"
    """`continue`, the paper's: the teacher continues where the student went astray. `turns`: see `mixed_policy.turns`; then
    `length_cap`, `cut_after` and `keep` have no meaning."""

    turns: TurnsConfig = TurnsConfig()
    """How they take turns."""

    prompts: Positive | None = 50_000
    """Of the stage before; null: all of them."""

    temperature: Temperature = 1.0
    """Of the student's answers and of the teacher's continuations."""

    length_cap: float = Field(1.5, gt=0)
    """The student's answer is capped at this multiple of the teacher's length, in student tokens."""

    cut_after: Probability = 0.5
    """Cut at a random place from this share of the answer on where a token begins for student and teacher alike. Beyond half:
    the student must have gone astray on its own."""

    keep: Literal["truncated", "truncated_or_wrong"] = "truncated"
    """The paper keeps truncated answers: there student and teacher part. `truncated_or_wrong` adds those with a wrong final
    answer."""

    right_answers_only: bool = False
    """Drop continuations that end in a wrong answer by the `grader` of their problems' source, where the problem has a reference
    answer: the teacher didn't repair them. `filters.right_answers_only` asks it of all stages."""

    off_policy_ratio: float = Field(2.6, ge=0)
    """Off-policy rows of the stage before, for each mixed one (the paper's ablation: 20K to 7.7K)."""

    mask_prefix: bool = False
    """Whether the student's prefix is left out of the loss. Masking it hurt in the paper (AIME24 80.8 against 83.3)."""

    @model_validator(mode="after")
    def _has_a_prefix(self) -> MixedPolicyConfig:
        if self.method == "turns" and self.mask_prefix:
            raise ValueError("mask_prefix=true needs method=continue: what is written in turns has no prefix")
        return self
