"""The steps that a recipe implies, in the order in which they run.

prompts -> sample -> filter -> score -> select -> pack -> train -> export      (a sampled stage)
rollout -> continue -> filter -> pack -> train -> export                       (a mixed-policy stage)
turns -> filter -> pack -> train -> export                                     (one that is written in turns)
answer -> grade (the student, each stage's model, the teacher; each benchmark) -> report
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from conversion.import_export_steps import ExportStepConfig
from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.prompts import Grader
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole, SamplingConfig
from dasd_megatron.config.stages import SampledStageConfig, StageConfig
from dasd_megatron.curation.filtering import FilterConfig
from dasd_megatron.curation.packing import PackStepConfig
from dasd_megatron.curation.scores import NEED_BRIER
from dasd_megatron.curation.selection import SelectStepConfig
from dasd_megatron.evaluation.answer_step import AnswerConfig
from dasd_megatron.evaluation.benchmark_step import BenchmarkStepConfig
from dasd_megatron.evaluation.benchmarks.benchmark import answer_settings
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.evaluation.grade_step import GradeConfig
from dasd_megatron.models.hf_config import check_model_folder, read_config
from dasd_megatron.models.parallel_layout import check_layout
from dasd_megatron.pipeline.registered_names import check_named_parts
from dasd_megatron.pipeline.rehearsal_steps import RehearsalSteps
from dasd_megatron.pipeline.step_builder import Source
from dasd_megatron.pipeline.teacher_steps import TeacherSteps
from dasd_megatron.report.report import ReportConfig
from dasd_megatron.sampling.engines.megatron_engine import check_scorer
from dasd_megatron.sampling.sample import SampleConfig
from dasd_megatron.sampling.score import ScoreConfig
from dasd_megatron.sampling.student_rollout import RolloutConfig
from dasd_megatron.sampling.teacher_continuation import ContinueConfig
from dasd_megatron.sampling.turns import TurnsStepConfig
from dasd_megatron.steps.step import ExternalInput, Step
from dasd_megatron.training.train_step_config import TrackingConfig, TrainConfig
from dasd_megatron.utils.errors import UserError

# The last step.
REPORT = "report"
# Models that aren't named by a stage.
STUDENT, TEACHER = "student", "teacher"


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


class _GraphBuilder(RehearsalSteps, TeacherSteps):
    def _check(self) -> None:
        recipe = self.recipe
        check_model_folder("teacher.model", recipe.teacher.model)
        check_model_folder("student.model", recipe.student.model)
        self._check_teacher_runs()
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
        scorer = recipe.engine.of("scorer")
        if scorer.name == "megatron":
            check_scorer(recipe.student.model, scorer)

    def _check_teacher_runs(self) -> None:
        """Raises UserError where something runs the teacher, and only its tokenizer is there."""
        recipe, folder = self.recipe, self.recipe.teacher.model
        runs = [
            f"stages.{index}"
            for index, stage in enumerate(recipe.stages)
            if not (isinstance(stage, SampledStageConfig) and stage.responses is not None)
        ]
        runs += ["evaluation.teacher=true"] if recipe.evaluation.teacher else []
        if runs and not recipe.engine.of("teacher").runs_elsewhere and not any(folder.glob("*.safetensors*")):
            raise UserError(
                f"teacher.model: {folder}: no safetensors in it, and the teacher is run by {', '.join(runs)}; get its weights, "
                "give servers that run it (engine.teacher), or give each stage `responses` and set evaluation.teacher=false"
            )

    def build(self) -> dict[str, Step]:
        """All steps."""
        recipe = self.recipe
        if not self.remote:
            self._check()
        self._add_benchmarks()
        checkpoint = (
            self.add("import_student", "import", self.plain, {"model": self.student}) if recipe.stages else None
        )
        exported: Source = self.student
        models: dict[str, Source] = {STUDENT: self.student}
        selected: Step | None = None  # of the sampled stage before
        for index, stage in enumerate(recipe.stages):
            if isinstance(stage, SampledStageConfig):
                selected = self._sampled_data(stage, index)
                packs = self._pack(stage, selected)
            else:
                assert selected is not None  # the recipe's own check
                packs = self._mixed_policy_data(stage, selected, exported)
            if recipe.rehearsal is not None:
                packs = self.worst_case_packs(stage, recipe.rehearsal)
            assert checkpoint is not None
            checkpoint = self._train(stage, packs, checkpoint, recipe.seed + index)
            inputs: dict[str, Source] = {"checkpoint": checkpoint, "model": self.student}
            exported = models[stage.name] = self._export(stage, inputs)
        if recipe.evaluation.teacher:
            models[TEACHER] = self.teacher
        if recipe.rehearsal is not None:
            self.add_probes(recipe.rehearsal)
        self._evaluate(models)
        for name in recipe.launch.steps:
            if name not in self.steps:
                raise UserError(f"launch.steps.{name}: no such step; steps: {', '.join(self.steps)}")
        return self.steps

    def _export(self, stage: StageConfig, inputs: Mapping[str, Source]) -> Step:
        recipe = self.recipe
        config = ExportStepConfig(threads=recipe.launch.threads, system_prompt=recipe.student.system_prompt)
        return self.add(f"export_{stage.name}", "export", config, inputs)

    def _sampled_data(self, stage: SampledStageConfig, index: int) -> Step:
        """sample, or what exists already -> filter -> score -> select."""
        recipe = self.recipe
        source = stage.responses or stage.source or recipe.prompts.train
        assert source is not None  # the recipe's own check
        self._grader: Grader = source.grader
        made = self.responses(stage, index)
        filtered = self._filter(stage, made, recipe.filters.right_answers_only, recipe.teacher, self.teacher)
        inputs: dict[str, Source] = {"responses": filtered, "model": self.student}
        selection = stage.selection.applied_to(recipe.selection)
        scoring = ScoreConfig(**self.engine("scorer"), model=recipe.student, brier=selection.score in NEED_BRIER)
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
            **self.engine("teacher"),
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
            **self.engine("student"),
            model=recipe.student,
            prompts=mixed.prompts,
            temperature=mixed.temperature,
            length_cap=mixed.length_cap,
            prompts_per_shard=recipe.sampling.prompts_per_shard,
            seed=recipe.seed,
        )
        answers = self.add(f"rollout_{stage.name}", "rollout", rollout, {"responses": selected, "model": student})
        continuation = ContinueConfig(
            **self.engine("teacher"),
            may_be_empty=recipe.rehearsal is not None,
            model=recipe.teacher,
            student=recipe.student,
            sampling=recipe.sampling,
            cut_after=mixed.cut_after,
            keep=mixed.keep,
            temperature=mixed.temperature,
            length_cap=mixed.length_cap,
            grader=self._grader,
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
            may_be_empty=self.may_be_empty(stage),
            teacher=writer,
            student=recipe.student,
            filters=recipe.filters,
            sentence_end=recipe.sentence_end,
            context_length=recipe.packing.context_length,
            max_length=recipe.engine.of("scorer").max_length,
            grader=self._grader if right_answers_only else None,
        )
        inputs: dict[str, Source] = {"responses": responses, "teacher": model, "student": self.student}
        return self.add(f"filter_{stage.name}", "filter", config, inputs)

    def _pack(self, stage: StageConfig, responses: Step, off_policy: Step | None = None) -> Step:
        recipe = self.recipe
        config = PackStepConfig(
            threads=recipe.launch.threads,
            may_be_empty=self.may_be_empty(stage),
            context_length=recipe.packing.context_length,
            seed=recipe.seed,
            off_policy_ratio=None if off_policy is None else recipe.mixed_policy.off_policy_ratio,
            mask_prefix=off_policy is not None and recipe.mixed_policy.mask_prefix,
            held_out=recipe.packing.held_out,
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
            kill_after=self.kill_after(stage),
            parallel=recipe.parallel,
            memory=recipe.memory,
            tracking=TrackingConfig(
                every=recipe.logging.every,
                tensorboard=events if recipe.logging.tensorboard else None,
                wandb_project=recipe.logging.wandb_project,
            ),
        )
        return self.add(name, "train", config, {"packs": packs, "start": start, "model": self.student})

    def _add_benchmarks(self) -> None:
        """The steps that read the benchmarks' problems."""
        recipe = self.recipe
        self.benchmarks: dict[str, Step] = {}
        for index, benchmark in enumerate(recipe.evaluation.benchmarks):
            key, path = f"evaluation.benchmarks.{index}", benchmark.path
            declared = declared_benchmark(benchmark, key)
            if not self.remote and path is not None and not path.exists():
                raise UserError(f"{key}.path: {path}: no such file")
            data = path or benchmark.dataset or declared.dataset
            config = BenchmarkStepConfig(threads=recipe.launch.threads, benchmark=benchmark, key=key)
            name = f"benchmark_{benchmark.name}"
            self.benchmarks[benchmark.name] = self.add(
                name, "benchmark", config, {"source": ExternalInput(path, str(data))}
            )
        held_out = recipe.prompts.held_out
        self.held_out = {name: step for name, step in self.benchmarks.items() if held_out is None or name in held_out}

    def _reference(self, benchmark: str) -> Step:
        """The teacher's responses to a benchmark's problems."""
        recipe = self.recipe
        sampling = SampleConfig(
            **self.engine("teacher"),
            model=recipe.teacher,
            sampling=SamplingConfig(
                responses_per_prompt=1,
                max_tokens=recipe.sampling.max_tokens,
                prompts_per_shard=recipe.evaluation.answers_per_shard,
            ),
            temperature=1.0,
            seed=self._seed_of_evaluation,
            limit=recipe.evaluation.alignment_prompts,
        )
        inputs: dict[str, Source] = {"prompts": self.benchmarks[benchmark], "model": self.teacher}
        return self.add(f"reference_{benchmark}", "sample", sampling, inputs)

    @property
    def _seed_of_evaluation(self) -> int:
        own = self.recipe.evaluation.seed
        return self.recipe.seed if own is None else own

    def _check_answers_fit(self, benchmark: BenchmarkConfig, key: str, max_tokens: int) -> None:
        """Raises UserError where an engine has no room for the longest answer: every long one would be wrong, unseen."""
        evaluation = self.recipe.evaluation
        own = benchmark.max_tokens is None and "max_tokens" in evaluation.model_fields_set
        setting = "evaluation.max_tokens" if own else f"{key}.max_tokens"
        roles: list[EngineRole] = ["student", "teacher"] if evaluation.teacher else ["student"]
        for role in roles:
            try:
                self.recipe.check_room(role, setting, max_tokens)
            except ValueError as error:
                raise UserError(str(error)) from None

    def _evaluate(self, models: Mapping[str, Source]) -> None:
        recipe = self.recipe
        for index, (benchmark, problems) in enumerate(self.benchmarks.items()):
            config, key = recipe.evaluation.benchmarks[index], f"evaluation.benchmarks.{index}"
            declared = declared_benchmark(config, key)
            settings = answer_settings(config, declared, recipe.evaluation)
            self._check_answers_fit(config, key, settings.max_tokens)
            others: dict[str, Source] = {"prompts": problems, "teacher": self.teacher}
            # Answers that the benchmark begins aren't a model's own.
            aligned = recipe.evaluation.teacher and config.answer_start is None
            if aligned:
                others["reference"] = self._reference(benchmark)
            for name, model in models.items():
                answering = AnswerConfig(
                    **self.engine("teacher" if name == TEACHER else "student"),
                    model=recipe.teacher if name == TEACHER else recipe.student,
                    teacher=recipe.teacher,
                    is_teacher=name == TEACHER,
                    aligned=aligned,
                    temperatures=settings.temperatures,
                    samples=settings.samples,
                    max_tokens=settings.max_tokens,
                    answers_per_shard=recipe.evaluation.answers_per_shard,
                    seed=self._seed_of_evaluation,
                )
                answers = self.add(f"answer_{name}_{benchmark}", "answer", answering, {"model": model, **others})
                grading = GradeConfig(threads=recipe.launch.threads, grader=config.grader or declared.grader)
                self.add(f"grade_{name}_{benchmark}", "grade", grading, {"answers": answers, "prompts": problems})
        config_of_report = ReportConfig(
            threads=recipe.launch.threads,
            title=recipe.name,
            teacher=recipe.teacher.model.name,
            student=recipe.student.model.name,
            stages=[stage.name for stage in recipe.stages],
            models=list(models),
            benchmarks=list(self.benchmarks),
        )
        self.add(REPORT, "report", config_of_report, dict(self.steps))
