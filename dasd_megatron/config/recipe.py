"""The recipe: everything that a distillation is.

Defaults are stated in the sections and nowhere else. Where the paper (arXiv 2601.09088) gives a number it is the default; where
it leaves a choice open, the setting's description says what was chosen and why.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError, model_validator

from dasd_megatron.config.base import Config, Name, NonNegative
from dasd_megatron.config.curation import FiltersConfig, PackingConfig, SelectionConfig
from dasd_megatron.config.evaluation import EvaluationConfig
from dasd_megatron.config.expected import ExpectedConfig
from dasd_megatron.config.launch import LaunchConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.prompts import PromptsConfig
from dasd_megatron.config.rehearsal import RehearsalConfig
from dasd_megatron.config.sampling import EngineRole, EnginesConfig, SamplingConfig
from dasd_megatron.config.stages import MixedPolicyConfig, MixedPolicyStageConfig, SampledStageConfig, StageConfig
from dasd_megatron.config.training import LoggingConfig, MemoryConfig, ParallelConfig, TrainingConfig

DEFAULT_STAGES: list[StageConfig] = [
    SampledStageConfig(kind="sampled", name="low_temperature", temperature=0.6),
    SampledStageConfig(kind="sampled", name="high_temperature", temperature=1.0),
    MixedPolicyStageConfig.model_validate({"kind": "mixed_policy", "name": "mixed_policy", "training": {"epochs": 1}}),
]


class Recipe(Config):
    """A whole distillation."""

    name: Name
    """Of the run, in titles and job names."""

    run_dir: Path
    """Folder of the run: artifacts, logs, the report and the final model."""

    artifacts: Path | None = None
    """Folder of the artifacts; by default RUN_DIR/artifacts. Runs that share one make what they have in common once."""

    seed: NonNegative = 42
    """Of sampling, selection, packing and the order of the data."""

    plugins: list[str] = []
    """Python modules of your own that register engines, filters, scores, graders, model families or step kinds; each process
    of the run imports them first. Steps of registered kinds are run from Python; a recipe implies the product's own."""

    teacher: ModelConfig
    """The model to learn from: anything that the engine runs."""

    student: ModelConfig
    """The model to train."""

    prompts: PromptsConfig = PromptsConfig()
    """Problems to learn from."""

    engine: EnginesConfig = EnginesConfig()
    """What samples and scores."""

    sampling: SamplingConfig = SamplingConfig()
    """How the teacher answers."""

    sentence_end: str = r"[.!?。！？．｡।॥۔؟\n]+(?:(?<=[^.!?])|[\"')\]]*\s+)"
    """What ends a sentence, as a regular expression that consumes the end. The default: full stops of other scripts, line
    breaks, and closing punctuation before white space (so that 3.14 holds together)."""

    min_sentence_bytes: NonNegative = 16
    """Shorter sentences are joined to the next one: `1. ` or `e.g. ` has no vote of its own in the selection."""

    filters: FiltersConfig = FiltersConfig()
    """What never reaches training."""

    selection: SelectionConfig = SelectionConfig()
    """Which of a prompt's responses are learned from."""

    packing: PackingConfig = PackingConfig()
    """How documents become packs."""

    training: TrainingConfig = TrainingConfig()
    """Settings of every training stage."""

    parallel: ParallelConfig = ParallelConfig()
    """How training is split over ranks."""

    memory: MemoryConfig = MemoryConfig()
    """What training gives up in time for memory."""

    mixed_policy: MixedPolicyConfig = MixedPolicyConfig()
    """How the data of mixed-policy stages is made."""

    stages: list[StageConfig] = DEFAULT_STAGES
    """Training stages, each starting from the one before it; none: the student is only measured. By default the paper's three:
    `low_temperature` (0.6), `high_temperature` (1.0) and `mixed_policy` (1 epoch)."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out measures."""

    expected: ExpectedConfig = ExpectedConfig()
    """What a dry run assumes."""

    launch: LaunchConfig = LaunchConfig()
    """Where and how wide steps run."""

    logging: LoggingConfig = LoggingConfig()
    """Where the metrics of training go."""

    rehearsal: RehearsalConfig | None = None
    """What makes this the recipe of a rehearsal."""

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or {"student", "teacher"} & set(names):
            raise ValueError("stages need distinct names, other than student and teacher")
        if self.stages and self.stages[0].kind == "mixed_policy":
            raise ValueError(
                f"stages.0 ({names[0]}): the first stage needs kind: sampled; only a later one can be mixed_policy"
            )
        for index, stage in enumerate(self.stages):
            if (
                stage.kind == "sampled"
                and stage.source is None
                and stage.responses is None
                and self.prompts.train is None
            ):
                raise ValueError(
                    f"stages.{index} ({stage.name}) has no problems: give prompts.train, or the stage's source or responses"
                )
            try:
                stage.training.applied_to(self.training)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages.{index}.training: {reason}") from None
        try:
            re.compile(self.sentence_end)
        except re.error as error:
            raise ValueError(f"sentence_end={self.sentence_end!r} is no regular expression: {error}") from None
        if self.sampling.max_tokens > self.packing.context_length:
            raise ValueError(
                f"sampling.max_tokens={self.sampling.max_tokens} is above packing.context_length="
                f"{self.packing.context_length}: such a response could never be trained on"
            )
        if self.stages or self.evaluation.teacher:
            self.check_room("teacher", "sampling.max_tokens", self.sampling.max_tokens)
        benchmarks = [benchmark.name for benchmark in self.evaluation.benchmarks]
        for name in self.prompts.held_out or ():
            if name not in benchmarks:
                raise ValueError(
                    f"prompts.held_out: {name} is not among evaluation.benchmarks ({', '.join(benchmarks) or 'none'})"
                )
        return self

    @property
    def folder_of_artifacts(self) -> Path:
        """Where the steps' artifacts are."""
        return self.artifacts or self.run_dir / "artifacts"

    def check_room(self, role: EngineRole, setting: str, tokens: int) -> None:
        """Raises ValueError where the role's engine has no room for a prompt and the `tokens` that `setting` asks for."""
        longest = self.engine.of(role).max_length
        if longest is not None and longest <= tokens:
            own = "max_length" in getattr(self.engine, role).written()
            named = f"engine.{role}.max_length={longest}" if own else f"engine.max_length={longest}"
            raise ValueError(
                f"{named} (of the {role}'s engine) leaves no room for a prompt beside {setting}={tokens}: it counts both; "
                f"raise it, or lower {setting}"
            )
