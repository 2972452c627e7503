"""The steps that a recipe implies, in the order in which they run.

prompts -> sample -> filter -> score -> select -> pack -> train -> export      (a sampled stage)
rollout -> continue -> filter -> pack -> train -> export                       (a mixed-policy stage)
turns -> filter -> pack -> train -> export                                     (one that is written in turns)
evaluate (the student, each stage's model, the teacher) -> report
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.import_export_steps import ExportStepConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.prompts import PromptSource
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole, SamplingConfig
from dasd_megatron.config.stages import SampledStageConfig, StageConfig
from dasd_megatron.curation.filtering import FilterConfig
from dasd_megatron.curation.packing import PackStepConfig
from dasd_megatron.curation.scores import NEED_BRIER
from dasd_megatron.curation.selection import SelectStepConfig
from dasd_megatron.evaluation.evaluate import EvaluateConfig
from dasd_megatron.models.hf_config import check_model_folder, read_config
from dasd_megatron.models.parallel_layout import check_layout
from dasd_megatron.pipeline.registered_names import check_named_parts
from dasd_megatron.report.report import ReportConfig
from dasd_megatron.sampling.prompts import PromptsStepConfig
from dasd_megatron.sampling.sample import SampleConfig
from dasd_megatron.sampling.score import ScoreConfig
from dasd_megatron.sampling.student_rollout import RolloutConfig
from dasd_megatron.sampling.teacher_continuation import ContinueConfig
from dasd_megatron.sampling.turns import TurnsStepConfig
from dasd_megatron.steps.registry import STEP_KINDS
from dasd_megatron.steps.step import ExternalInput, Step, StepConfig
from dasd_megatron.training.train_step_config import TrackingConfig, TrainConfig
from dasd_megatron.utils.errors import UserError

Source = Step | ExternalInput
# The last step.
REPORT = "report"


def build_steps(recipe: Recipe, remote: bool = False) -> dict[str, Step]:
    """Steps by name, each after those it reads. Raises UserError when a model folder or prompt file is absent.

    With `remote` the files are on another machine: nothing is checked here, and no step is known to be done.
    """
    check_named_parts(recipe)
    return _GraphBuilder(recipe, remote).build()


def find_step(steps: Mapping[str, Step], name: str, recipe: Path) -> Step:
    """The step of this name. Raises UserError naming the nearest ones."""
    if name not in steps:
        near = difflib.get_close_matches(name, steps, n=1)
        raise UserError(
            f"{recipe}: no step {name!r}"
            + (f"; the nearest is {near[0]!r}" if near else "")
            + f"; steps: {', '.join(steps)}"
        )
    return steps[name]


class _GraphBuilder:
    def __init__(self, recipe: Recipe, remote: bool) -> None:
        self.recipe, self.remote = recipe, remote
        self.steps: dict[str, Step] = {}
        self.teacher = ExternalInput(recipe.teacher.model, str(recipe.teacher.model))
        self.student = ExternalInput(recipe.student.model, str(recipe.student.model))
        if not remote:
            self._check()

    def _check(self) -> None:
        recipe = self.recipe
        check_model_folder("teacher.model", recipe.teacher.model)
        check_model_folder("student.model", recipe.student.model)
        config = read_config(recipe.student.model)
        for stage in recipe.stages:
            check_layout(
                config,
                recipe.student.model,
                recipe.parallel,
                stage.training.applied_to(recipe.training),
                recipe.memory,
                recipe.packing.context_length,
            )

    def add(self, name: str, kind: str, config: StepConfig, inputs: Mapping[str, Source]) -> Step:
        step = Step(name, STEP_KINDS.get(kind)(), config, inputs, self.recipe.run_dir, self.remote)
        self.steps[name] = step
        return step

    def build(self) -> dict[str, Step]:
        recipe = self.recipe
        self.test_prompts = self._prompts("prompts_test", "prompts.test", recipe.prompts.test, {})
        checkpoint = self.add("import_student", "import", self._plain, {"model": self.student})
        exported: Source = self.student
        models: dict[str, Source] = {"student": self.student}
        selected: Step | None = None  # of the sampled stage before
        for index, stage in enumerate(recipe.stages):
            if isinstance(stage, SampledStageConfig):
                selected = self._sampled_data(stage, index)
                packs = self._pack(stage, selected)
            else:
                assert selected is not None  # the recipe's own check
                packs = self._mixed_policy_data(stage, selected, exported)
            checkpoint = self._train(stage, packs, checkpoint, recipe.seed + index)
            inputs: dict[str, Source] = {"checkpoint": checkpoint, "model": self.student}
            exported = models[stage.name] = self._export(stage, inputs)
        models["teacher"] = self.teacher
        self._evaluate(models)
        for name in recipe.launch.steps:
            if name not in self.steps:
                raise UserError(f"launch.steps.{name}: no such step; steps: {', '.join(self.steps)}")
        return self.steps

    def _export(self, stage: StageConfig, inputs: Mapping[str, Source]) -> Step:
        recipe = self.recipe
        config = ExportStepConfig(threads=recipe.launch.threads, system_prompt=recipe.student.system_prompt)
        return self.add(f"export_{stage.name}", "export", config, inputs)

    @property
    def _plain(self) -> StepConfig:
        return StepConfig(threads=self.recipe.launch.threads)

    def _engine(self, role: EngineRole) -> dict[str, Any]:
        """What the configs of all engine steps have."""
        launch = self.recipe.launch
        return {"threads": launch.threads, "engine": self.recipe.engine.of(role), "replicas": launch.replicas}

    def _prompts(
        self,
        name: str,
        key: str,
        source: PromptSource,
        others: Mapping[str, Source],
        **settings: Any,
    ) -> Step:
        if not self.remote and source.path is not None and not source.path.is_file():
            raise UserError(f"{key}.path: {source.path}: no such file")
        external = ExternalInput(source.path, str(source.path or f"{source.dataset}/{source.split}"))
        config = PromptsStepConfig(
            threads=self.recipe.launch.threads, source=source, key=key, needs_answer=not others, **settings
        )
        return self.add(name, "prompts", config, {"source": external, **others})

    def _train_prompts(
        self, name: str, key: str, source: PromptSource, stages: Mapping[str, SampledStageConfig]
    ) -> Step:
        """`stages`: that learn from them, by their keys in the recipe."""
        recipe = self.recipe
        # Of the student its tokenizer alone: students that share one share the teacher's responses.
        tokenizer = recipe.student.model / "tokenizer.json"
        others: dict[str, Source] = {
            "held_out": self.test_prompts,
            "teacher": self.teacher,
            "student": ExternalInput(tokenizer, str(tokenizer)),
        }
        wanted = {
            "filters.right_answers_only": recipe.filters.right_answers_only,
            "mixed_policy.right_answers_only": recipe.mixed_policy.right_answers_only,
        }
        budgets = {"selection.total": recipe.selection.total}
        for stage_key, stage in stages.items():
            budgets[f"{stage_key}.selection.total"] = stage.selection.applied_to(recipe.selection).total
            budgets[f"{stage_key}.prompts"] = stage.prompts
        settings = {
            "answers_wanted_by": next((setting for setting, wants in wanted.items() if wants), None),
            "budgets": {budget: list(count) for budget, count in budgets.items() if isinstance(count, dict)},
        }
        return self._prompts(f"prompts_{name}", key, source, others, **settings)

    def _sampled_data(self, stage: SampledStageConfig, index: int) -> Step:
        """sample -> filter -> score -> select."""
        recipe = self.recipe
        if stage.source is not None:
            own = {f"stages.{index}": stage}
            prompts = self._train_prompts(stage.name, f"stages.{index}.source", stage.source, own)
        elif "prompts_train" in self.steps:
            prompts = self.steps["prompts_train"]
        else:
            users = {
                f"stages.{number}": other
                for number, other in enumerate(recipe.stages)
                if isinstance(other, SampledStageConfig) and other.source is None
            }
            prompts = self._train_prompts("train", "prompts.train", recipe.prompts.train, users)
        sampling = SampleConfig(
            **self._engine("teacher"),
            model=recipe.teacher,
            sampling=recipe.sampling,
            temperature=stage.temperature,
            seed=recipe.seed,
            limit=stage.prompts,
            expected_response_tokens=stage.expected_response_tokens,
        )
        inputs: dict[str, Source] = {"prompts": prompts, "model": self.teacher}
        sampled = self.add(f"sample_{stage.name}", "sample", sampling, inputs)
        filtered = self._filter(stage, sampled, recipe.filters.right_answers_only, recipe.teacher, self.teacher)
        inputs = {"responses": filtered, "model": self.student}
        selection = stage.selection.applied_to(recipe.selection)
        scoring = ScoreConfig(**self._engine("scorer"), model=recipe.student, brier=selection.score in NEED_BRIER)
        scored = self.add(f"score_{stage.name}", "score", scoring, inputs)
        selecting = SelectStepConfig(
            threads=recipe.launch.threads,
            selection=selection,
            sentence_end=recipe.sentence_end,
            min_sentence_bytes=recipe.min_sentence_bytes,
            seed=recipe.seed,
        )
        return self.add(f"select_{stage.name}", "select", selecting, {"responses": scored})

    def _mixed_policy_data(self, stage: StageConfig, selected: Step, student: Source) -> Step:
        """rollout -> continue, or turns; then filter -> pack with off-policy rows."""
        recipe, mixed = self.recipe, self.recipe.mixed_policy
        right_answers_only = recipe.filters.right_answers_only or mixed.right_answers_only
        if mixed.method == "turns":
            written = self._turns(stage, selected, student)
            filtered = self._filter(stage, written, right_answers_only, recipe.student, self.student)
        else:
            written = self._continued(stage, selected, student)
            filtered = self._filter(stage, written, right_answers_only, recipe.teacher, self.teacher)
        return self._pack(stage, filtered, off_policy=selected)

    def _turns(self, stage: StageConfig, selected: Step, student: Source) -> Step:
        recipe, mixed, turns = self.recipe, self.recipe.mixed_policy, self.recipe.mixed_policy.turns
        students, teachers = recipe.engine.of("student"), recipe.engine.of("teacher")
        config = TurnsStepConfig(
            **self._engine("teacher"),
            # On the same GPUs.
            student_engine=students.model_copy(update={"tensor_parallel": teachers.tensor_parallel}),
            model=recipe.teacher,
            student=recipe.student,
            sampling=recipe.sampling,
            turns=turns,
            prompts=mixed.prompts,
            temperature=mixed.temperature,
            sentence_end=recipe.sentence_end,
            context_length=recipe.packing.context_length,
            max_length=min(filter(None, (students.max_length, teachers.max_length)), default=None),
            seed=recipe.seed,
        )
        inputs: dict[str, Source] = {"responses": selected, "model": self.teacher, "student": student}
        if turns.boundary == "predictor":
            for name, path in {"student": turns.student_predictor, "teacher": turns.teacher_predictor}.items():
                if path is not None and not (self.remote or path.is_dir()):
                    raise UserError(f"mixed_policy.turns.{name}_predictor: {path}: no such model folder")
                inputs[f"{name}_predictor"] = ExternalInput(path, str(path))
        return self.add(f"turns_{stage.name}", "turns", config, inputs)

    def _continued(self, stage: StageConfig, selected: Step, student: Source) -> Step:
        recipe, mixed = self.recipe, self.recipe.mixed_policy
        rollout = RolloutConfig(
            **self._engine("student"),
            model=recipe.student,
            prompts=mixed.prompts,
            temperature=mixed.temperature,
            length_cap=mixed.length_cap,
            prompts_per_shard=recipe.sampling.prompts_per_shard,
            seed=recipe.seed,
        )
        answers = self.add(f"rollout_{stage.name}", "rollout", rollout, {"responses": selected, "model": student})
        continuation = ContinueConfig(
            **self._engine("teacher"),
            model=recipe.teacher,
            student=recipe.student,
            sampling=recipe.sampling,
            cut_after=mixed.cut_after,
            keep=mixed.keep,
            temperature=mixed.temperature,
            length_cap=mixed.length_cap,
            grader=recipe.evaluation.grader,
            context_length=recipe.packing.context_length,
            max_length=recipe.engine.of("teacher").max_length,
            seed=recipe.seed,
        )
        inputs: dict[str, Source] = {"answers": answers, "model": self.teacher, "student": self.student}
        return self.add(f"continue_{stage.name}", "continue", continuation, inputs)

    def _filter(
        self, stage: StageConfig, responses: Step, right_answers_only: bool, writer: ModelConfig, model: ExternalInput
    ) -> Step:
        """`writer`, `model`: in whose tokens the responses are."""
        recipe = self.recipe
        config = FilterConfig(
            threads=recipe.launch.threads,
            teacher=writer,
            student=recipe.student,
            filters=recipe.filters,
            sentence_end=recipe.sentence_end,
            context_length=recipe.packing.context_length,
            max_length=recipe.engine.of("scorer").max_length,
            grader=recipe.evaluation.grader if right_answers_only else None,
        )
        inputs: dict[str, Source] = {"responses": responses, "teacher": model, "student": self.student}
        return self.add(f"filter_{stage.name}", "filter", config, inputs)

    def _pack(self, stage: StageConfig, responses: Step, off_policy: Step | None = None) -> Step:
        recipe = self.recipe
        config = PackStepConfig(
            threads=recipe.launch.threads,
            context_length=recipe.packing.context_length,
            seed=recipe.seed,
            off_policy_ratio=None if off_policy is None else recipe.mixed_policy.off_policy_ratio,
            mask_prefix=off_policy is not None and recipe.mixed_policy.mask_prefix,
        )
        inputs = {"responses": responses, **({} if off_policy is None else {"off_policy": off_policy})}
        return self.add(f"pack_{stage.name}", "pack", config, inputs)

    def _train(self, stage: StageConfig, packs: Step, start: Step, seed: int) -> Step:
        recipe, name = self.recipe, f"train_{stage.name}"
        events = recipe.run_dir / "tensorboard" / name
        config = TrainConfig(
            threads=recipe.launch.threads,
            training=stage.training.applied_to(recipe.training),
            isolate_documents=recipe.packing.isolate_documents,
            seed=seed,
            parallel=recipe.parallel,
            memory=recipe.memory,
            tracking=TrackingConfig(
                tensorboard=events if recipe.logging.tensorboard else None, wandb_project=recipe.logging.wandb_project
            ),
        )
        return self.add(name, "train", config, {"packs": packs, "start": start, "model": self.student})

    def _evaluate(self, models: Mapping[str, Source]) -> None:
        recipe = self.recipe
        sampling = SampleConfig(
            **self._engine("teacher"),
            model=recipe.teacher,
            sampling=SamplingConfig(
                responses_per_prompt=1,
                max_tokens=recipe.sampling.max_tokens,
                prompts_per_shard=recipe.evaluation.problems_per_shard,
            ),
            temperature=1.0,
            seed=recipe.seed,
            limit=recipe.evaluation.alignment_prompts,
        )
        inputs: dict[str, Source] = {"prompts": self.test_prompts, "model": self.teacher}
        reference = self.add("reference", "sample", sampling, inputs)
        for name, model in models.items():
            config = EvaluateConfig(
                **self._engine("teacher" if name == "teacher" else "student"),
                model=recipe.teacher if name == "teacher" else recipe.student,
                teacher=recipe.teacher,
                is_teacher=name == "teacher",
                evaluation=recipe.evaluation,
                seed=recipe.seed,
            )
            inputs = {"model": model, "prompts": self.test_prompts, "reference": reference, "teacher": self.teacher}
            self.add(f"evaluate_{name}", "evaluate", config, inputs)
        stages = [stage.name for stage in recipe.stages]
        config_of_report = ReportConfig(threads=recipe.launch.threads, title=recipe.name, stages=stages)
        self.add(REPORT, "report", config_of_report, dict(self.steps))
